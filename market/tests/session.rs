//! Both machines of a session against each other, and each against a liar, in virtual time.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "session/world.rs"]
mod world;

#[path = "session/pair.rs"]
mod pair;

#[path = "session/exposure.rs"]
mod exposure;

#[path = "session/crashes.rs"]
mod crashes;
