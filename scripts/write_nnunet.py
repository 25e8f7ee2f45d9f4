"""Write a data set of this package as nnU-Net v2 raw data.

Example: python scripts/write_nnunet.py data/limbs nnUNet_raw --id 501 --name Calcinosis

Then, with nnU-Net installed:
    nnUNetv2_plan_and_preprocess -d 501 --verify_dataset_integrity
    cp nnUNet_raw/Dataset501_Calcinosis/splits_final.json nnUNet_preprocessed/Dataset501_Calcinosis/
    nnUNetv2_train 501 3d_fullres 0
    nnUNetv2_predict -i nnUNet_raw/Dataset501_Calcinosis/imagesTs -o predictions -d 501 -c 3d_fullres -f 0
    jdm-seg evaluate predictions nnUNet_raw/Dataset501_Calcinosis/labelsTs evaluation
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jdm_seg.cases import read_manifest
from jdm_seg.errors import InputError
from jdm_seg.nnunet import write_nnunet


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="datalist.json, a CSV manifest, or the folder of a datalist.json")
    parser.add_argument("out", type=Path, help="nnUNet_raw")
    parser.add_argument("--id", type=int, default=501, help="number of the data set, 1 to 999")
    parser.add_argument("--name", default="Calcinosis", help="letters, digits and hyphens")
    arguments = parser.parse_args()
    try:
        manifest = read_manifest(arguments.data)
        folder = write_nnunet(manifest, arguments.out, dataset_id=arguments.id, name=arguments.name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(manifest.all)} cases in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
