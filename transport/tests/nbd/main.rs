//! The NBD server against the cases N01 to N25, spoken to byte by byte and through the project's own client.

mod client;
mod conduct;
mod fuzz;
mod handshake;
mod memory;
mod raw;
mod tls;
mod transmission;
