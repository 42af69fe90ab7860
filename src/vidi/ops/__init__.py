"""Operations on tensors that tasks, networks and the loop share."""
