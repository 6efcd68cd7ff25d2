import logging

# Imported by every process before its libraries. bitsandbytes advises at its import to install a package that serves
# 4-bit products on a CPU with AVX-512 only.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
