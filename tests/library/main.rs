//! The crate as a library: what a program does that has a server in it, or is a client or a backend of one.

mod attach;
mod events;
mod middleware;
mod served;
