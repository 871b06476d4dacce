"""One open file of a record, which notices what others do to the file."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from .place import Place, unlock

__all__ = ["Fault", "RecordFile"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fault:
    """Why no more rows can go to a file.

    Attributes:
        text: what happened, for a sentence with the file as its subject.
        readable: whether the writer can still read all rows, although the path has lost them.
    """

    text: str
    readable: bool = False


class RecordFile:
    """An open file of a record.

    Args:
        place: the file; this object closes the file.

    Attributes:
        place: the file.
        size: the size of the file after this object's own writes.
        is_device: whether the path is a device such as /dev/null, which has no other parts.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        found = os.fstat(place.descriptor)
        self.size: int = found.st_size
        self._identity = (found.st_dev, found.st_ino)
        self.is_device: bool = not stat.S_ISREG(found.st_mode)

    def fault(self) -> Fault | None:
        """Return what others did to the file since the last write, or None."""
        if self.is_device:
            return None
        try:
            found = self.place.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return Fault("was deleted or moved", readable=True)
        except OSError:  # A directory that is closed to us still has the file.
            found = os.fstat(self.place.descriptor)
        if (found.st_dev, found.st_ino) != self._identity:
            return Fault("was replaced", readable=True)
        if found.st_size < self.size:
            return Fault(f"was cut from {self.size:,} to {found.st_size:,} bytes")
        if found.st_size > self.size:
            return Fault("was written to by another program")
        return None

    def write(self, text: bytes) -> None:
        """Write a text; after an error, `size` counts the bytes that were written.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        rest = memoryview(text)
        while rest:  # A nearly full disk accepts a part and then refuses the rest.
            written = os.write(self.place.descriptor, rest)
            self.size += written
            rest = rest[written:]

    def copy_to(self, other: RecordFile) -> None:
        """Write the whole content of this file to another file.

        Raises:
            OSError: the content cannot be read or written.
        """
        os.lseek(self.place.descriptor, 0, os.SEEK_SET)  # Each write goes to the end all the same.
        while block := os.read(self.place.descriptor, _BLOCK):
            other.write(block)

    def sync(self) -> None:
        """Ask the disk to keep what was written.

        Raises:
            OSError: the disk did not keep it.
        """
        try:
            os.fsync(self.place.descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Devices cannot sync.
                raise

    def close(self) -> None:
        """Unlock and close the file."""
        unlock(self.place.descriptor)
        try:
            os.close(self.place.descriptor)
        except OSError:  # The last write has reported the same error.
            return

    def discard(self) -> None:
        """Remove a file that this object has created, and close it."""
        if not self.is_device and self.fault() is None:
            self.place.path.unlink(missing_ok=True)
        self.close()
