//! A BitMesh node: mesh, tunnels, payments and control, joined by one driver loop.

pub mod config;
pub mod control;
pub mod mesh;
pub mod paths;
pub mod protocol;
pub mod settings;
pub mod tunnel;
pub mod words;
