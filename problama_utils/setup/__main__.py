import sys

from problama_utils.setup.preflight import main

if __name__ == "__main__":
    sys.exit(main())
