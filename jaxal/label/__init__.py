"""Reference calculations, host side: numpy in, numpy out, never JAX (only `bridge` touches it)."""
