"""One process of a training on several devices, as Lightning starts it: ``train_rank.py OVERRIDES``.

A file of its own in a folder of its own: Python puts a script's folder first in its search path, and in the package's
own folder our ``statistics`` would stand in for Python's.
"""

import sys

if __name__ == "__main__":
    from jdm_seg.cli import main

    sys.argv.insert(1, "train")
    main()
