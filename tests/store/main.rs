//! The store, by its promises. Everything in `battery` and `model` runs over both engines; what only a disk can do is
//! in `disk`.

mod battery;
mod disk;
mod model;
mod support;
