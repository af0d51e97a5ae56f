//! The built command line against a daemon that is played: what is printed where, and with which status it ends.

mod change;
mod down;
mod fixtures;
mod help;
mod letters;
mod load;
mod look;
mod messages;
mod silent;
mod support;
mod traces;
