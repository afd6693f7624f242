"""Intel's MKL on CPUs, in fp32: products and attention, which XLA calls (decision 24)."""
