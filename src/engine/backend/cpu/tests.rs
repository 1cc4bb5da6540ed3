//! Kernels of every instruction set against plain arithmetic.
