//! The store, by its promises. Everything in `battery`, `limits` and `model` runs over both engines; what only a disk
//! can do is in `disk`, and what only a table in memory lets a test do, damage one value, in `damage`.

mod battery;
mod damage;
mod disk;
mod limits;
mod model;
mod support;
