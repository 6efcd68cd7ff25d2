import logging

# Here, since the commands and the stages that they start import this package before their libraries. bitsandbytes
# advises at its import to install a package that serves 4-bit products on a CPU with AVX-512 only.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
