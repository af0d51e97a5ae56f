//! meshctl's own registry: a [`Catalogue`] in the daemon's control loop. The daemon writes leases down, and finds instances
//! again by itself.

mod catalogue;

pub use self::catalogue::Catalogue;
