//! The topology that `meshctl init` writes: it runs as it is, and every comment in it is true.

/// A commented topology of one service behind the gateway.
pub fn starter() -> &'static str {
    include_str!("starter.yaml")
}
