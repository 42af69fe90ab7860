"""From a trained run to what others use: files of other formats, fast inference, a server."""
