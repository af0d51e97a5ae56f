//! Registries know where the instances of a service are.
