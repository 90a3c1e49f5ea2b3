//! What a block front end serves. The NBD server knows volumes and recovery points only through this.

pub use engine::guest::Later;
use engine::guest::{Completion, Request};
use std::sync::Arc;

/// The shape of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Size in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// One line for a person.
    pub description: String,
}

/// A volume or a recovery point that can be served.
pub trait Export: Send + Sync {
    /// Its shape; read once for each connection.
    fn shape(&self) -> Shape;

    /// Takes a batch of requests: all that one connection had ready, in its order. Drains `requests`. What is
    /// answered at once is pushed to `ready`, in any order; each of the rest is answered exactly once through
    /// `later`, from any thread. May block the caller for as long as the volume takes no more writes.
    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, later: &Arc<dyn Later>);

    /// The connection that used `later` is gone: its outstanding requests take effect, unanswered. (A write that
    /// was submitted is never taken back.)
    fn detach(&self, _later: &Arc<dyn Later>) {}
}

/// The exports of a server, looked up by name at each negotiation; they come and go while it runs.
pub trait Catalog: Send + Sync {
    /// The names, sorted.
    fn names(&self) -> Vec<String>;

    /// The export of that name. The empty name is the default export, if there is one.
    fn find(&self, name: &str) -> Option<Arc<dyn Export>>;
}
