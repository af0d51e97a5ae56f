//! The product from end to end, a file per flow. One binary, so that it links once and its tests share the machine well.

mod apply;
mod change;
mod daemon;
mod disk;
mod failing;
mod gateway;
mod output;
mod polyglot;
mod registry;
mod rolling;
mod runtime;
mod shop;
mod validate;

/// One service with two instances behind `/`, and everything below it.
const HELLO: &str = "
services:
  hello: { builtin: hello, replicas: 2, health: { http: /healthz, interval: 100ms } }
routes:
  - { path: /, to: hello }
  - { path: '/*', to: hello }
";
