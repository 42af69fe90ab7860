"""One annotation file of PASCAL VOC: the image's size, its name, and the objects with their boxes.

Read by expat, which knows the line of everything. A document type is refused: it is where entities
are declared, and nothing here needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from vidi.data.boxes import number
from vidi.data.images import read
from vidi.errors import InputError

SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    name: str
    difficult: bool
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as they stand in the file: counted from 1, ends inclusive."""
    line: int


@dataclass
class VocFile:
    filename: str = ""
    size: tuple[int, int] = (0, 0)
    """Height and width; 0 where the file says none."""
    objects: list[VocObject] = field(default_factory=list)


def parse(path: str) -> VocFile:
    """Raises :class:`InputError`, with the line, for what is no such annotation."""
    return _Parser(path).result()


@dataclass
class _Element:
    """The texts of an element's children, and the lines where they begin."""

    line: int
    texts: dict[str, tuple[str, int]] = field(default_factory=dict)


class _Parser:
    def __init__(self, path: str) -> None:
        self.path = path
        self.names: list[str] = []
        self.lines: list[int] = []
        self.text: list[str] = []
        self.image = _Element(1)
        self.objects: list[_Element] = []
        self.expat = expat.ParserCreate()
        self.expat.buffer_text = True
        self.expat.StartDoctypeDeclHandler = self.doctype
        self.expat.StartElementHandler = self.start
        self.expat.EndElementHandler = self.end
        self.expat.CharacterDataHandler = self.text.append

    def at(self, line: int) -> str:
        return f"{self.path}, line {line}"

    def doctype(self, name: str, *_: object) -> None:
        raise InputError(
            f"{self.at(self.expat.CurrentLineNumber)}: a document type ({name}) is declared. It "
            "can name other files and is not read; an annotation has none. Remove it."
        )

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        line = self.expat.CurrentLineNumber
        if not self.names and name != "annotation":
            raise InputError(
                f"{self.at(line)}: the file begins with <{name}>; <annotation> is expected."
            )
        self.names.append(name)
        self.lines.append(line)
        self.text.clear()
        if self.names[1:] == ["object"]:
            self.objects.append(_Element(line))

    def end(self, _name: str) -> None:
        where, line = "/".join(self.names[1:]), self.lines.pop()
        self.names.pop()
        # An object's parts (heads, hands) have names and boxes of their own, one level below.
        element = self.image
        if where.startswith("object/"):
            element, where = self.objects[-1], where.removeprefix("object/")
        if where in _KNOWN:
            if where in element.texts:
                raise InputError(
                    f"{self.at(line)}: a second <{where.split('/')[-1]}> where one is expected. "
                    "Remove one of them."
                )
            element.texts[where] = ("".join(self.text).strip(), line)
        self.text.clear()

    def result(self) -> VocFile:
        data = read(self.path)
        if not data.strip():
            raise InputError(f"{self.path} is empty; an XML annotation is expected.")
        try:
            self.expat.Parse(data, True)
        except expat.ExpatError as error:
            reason = expat.ErrorString(error.code)
            raise InputError(
                f"{self.at(error.lineno)}: the XML is damaged or cut short ({reason})."
            ) from error
        except (ValueError, LookupError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path} is not readable as XML ({error}).") from error
        texts = self.image.texts
        return VocFile(
            filename=texts.get("filename", ("", 0))[0],
            size=(self.side("size/height"), self.side("size/width")),
            objects=[self.object(element) for element in self.objects],
        )

    def side(self, name: str) -> int:
        text, line = self.image.texts.get(name, ("", 1))
        if not text:
            return 0
        value = number(text, f"<{name.split('/')[-1]}>", self.at(line))
        if value < 0 or value != int(value):
            raise InputError(f"{self.at(line)}: {text} is no number of pixels. Correct it.")
        return int(value)

    def object(self, element: _Element) -> VocObject:
        texts = element.texts
        name = texts.get("name", ("", 0))[0]
        if not name:
            raise InputError(
                f"{self.at(element.line)}: an object has no <name>. Name its class, or remove it."
            )
        missing = [side for side in SIDES if f"bndbox/{side}" not in texts]
        if missing:
            raise InputError(
                f"{self.at(element.line)}: the {name} lacks {', '.join(missing)} in its <bndbox>. "
                "Add it, or remove the object."
            )
        sides = [texts[f"bndbox/{side}"] for side in SIDES]
        box = [number(t, f"<{s}>", self.at(n)) for s, (t, n) in zip(SIDES, sides, strict=True)]
        difficult, line = texts.get("difficult", ("0", 0))
        if difficult not in ("", "0", "1"):
            raise InputError(
                f"{self.at(line)}: <difficult> is {difficult!r}; 0 or 1 is expected. Correct it."
            )
        return VocObject(name, difficult == "1", (box[0], box[1], box[2], box[3]), element.line)


_KNOWN = {
    "filename", "size/width", "size/height",
    "name", "difficult", *(f"bndbox/{side}" for side in SIDES),
}  # fmt: skip
