//! Where the broker's files are, inside the state directory; both ends of its socket use it.

/// The broker's folder in the state directory.
pub const FOLDER: &str = "broker";
pub const DATABASE: &str = "broker.db";
pub const SOCKET: &str = "broker.sock";
/// Locked by the broker that owns the folder.
pub const LOCK: &str = "broker.lock";
/// There while nobody has the database open and the last one who had closed it properly.
pub const CLEAN: &str = "clean";
