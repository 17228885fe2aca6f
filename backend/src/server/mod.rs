// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vfio-user server: from a listening socket to one session at a time.
//!
//! | file | job |
//! |---|---|
//! | `endpoint.rs` | binding a path or taking a descriptor, and who may connect |
//! | `serve.rs` | the main loop: accept, refuse, signals |
//! | `session.rs` | one client: receive, dispatch, reply, clean up |
//! | `commands.rs` | one function per command |
//! | `replies.rs`, `refusal.rs` | the way back: replies, errnos and their reasons |
//! | `migration.rs`, `feature.rs`, `shared.rs` | the commands of migration; memory that carries its data |
//! | `logging.rs` | DMA logging: the features' layout |
//! | `channel.rs` | the migration channel: a socket and a thread of its own |
//! | `screen.rs` | which descriptors a client may pass |
//! | `irqs.rs` | SET_IRQS checked and translated; pure |
//! | `twin.rs` | requests of ours to the client, on the twin socket |

mod channel;
mod commands;
mod ending;
mod endpoint;
mod feature;
mod irqs;
mod logging;
mod migration;
mod refusal;
mod replies;
mod screen;
mod serve;
mod session;
mod shared;
mod twin;

#[cfg(test)]
mod tests;

pub use endpoint::{Endpoint, EndpointError, SocketOptions};
pub use refusal::Refusal;
pub use serve::{ServeError, ServeOptions, Signals, serve};
pub use session::{Session, SessionError, capabilities, print_capabilities};
