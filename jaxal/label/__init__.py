"""Reference calculations, host side: numpy in, numpy out, never JAX."""
