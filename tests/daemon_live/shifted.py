"""bootlockd with a wall clock that is off by the seconds in a file, which may change at any time.

The real clock is everybody's; there is no namespace for it. Arguments: the file, then bootlockd's.
"""

import sys
import time
from pathlib import Path

from bootlockd.main import main

_file = Path(sys.argv.pop(1))
_true = time.time


def _shifted() -> float:
    return _true() + float(_file.read_text() or 0)


time.time = _shifted
sys.exit(main())
