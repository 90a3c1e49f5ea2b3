//! The deterministic simulator of Landfall: the real engine and the real session logic, whole regions of them, in
//! one thread on virtual time.
