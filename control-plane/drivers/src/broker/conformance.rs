//! What every broker driver must do.
