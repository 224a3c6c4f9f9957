"""Make the fixture of the integration tests with the command ``subset``; this path is documented.

python scripts/tools/make_pytorch_integration_fixture.py --source scan.npz --output fixture.npz --subset-size 64
"""

from ptycho_torch.subset import main

if __name__ == "__main__":
    raise SystemExit(main())
