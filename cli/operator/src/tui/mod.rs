//! The screen: the whole system in a terminal, pushed by the daemon, and what an operator does about it.
//!
//! One direction: what happens is a [`Msg`](msg::Msg); [`update`] changes the [`Model`](model::Model) and says which
//! [`Effect`](effects::Effect)s are wanted; [`view`] draws the model. Both are plain functions; [`runtime`] alone owns the
//! terminal, the connection and the time.

mod effects;
mod figures;
mod keymap;
mod model;
mod msg;
mod runtime;
mod terminal;
mod update;
mod view;

pub(crate) use runtime::run;
