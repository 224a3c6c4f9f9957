"""Make the fixture of the integration tests: ``python -m ptycho_torch.subset`` by the name that the documents use.

python scripts/tools/make_pytorch_integration_fixture.py --source scan.npz --output fixture.npz --subset-size 64
"""

from ptycho_torch.subset import main

if __name__ == "__main__":
    raise SystemExit(main())
