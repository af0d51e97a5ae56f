//! The product from end to end, a file per flow. One binary, so that it links once and its tests share the machine well.

mod apply;
mod breakers;
mod calls;
mod change;
mod daemon;
mod disk;
mod events;
mod failing;
mod faults;
mod gateway;
mod gateways;
mod loadtest;
mod messages;
mod output;
mod polyglot;
mod readme;
mod registration;
mod registry;
mod replays;
mod rolling;
mod runtime;
mod secrets;
mod shop;
mod terminal;
mod traces;
mod tui;
mod validate;
mod vitals;

/// One service with two instances behind `/`, and everything below it.
const HELLO: &str = "
services:
  hello: { builtin: hello, replicas: 2, health: { http: /healthz, interval: 100ms } }
routes:
  - { path: /, to: hello }
  - { path: '/*', to: hello }
";
