//! Listeners that share one catalog of exports, the limits on their clients, and stopping.
//!
//! What holds:
//!
//! - a client that does not finish its handshake in time is cut off, and holds up nobody;
//! - beyond [`Config::max_connections`] clients are refused with a reason; beyond a few of those that are being
//!   told so, they are cut off at once;
//! - a socket file is removed only if nobody listens on it, or if it is our own.

use super::connection::{self, Connection};
use super::handshake::{Admission, Handshake, Session, Step, TlsPolicy};
use super::proto::Errno;
use super::wire::{self, Kind, Receiver, Wire};
use crate::block::Catalog;
use rustix::fs::{FileType, Mode};
use rustix::io::Errno as SystemError;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many clients beyond the limit are told why they are refused, at a time.
const MAX_TURNED_AWAY: usize = 16;
/// Clients that wait to be accepted; the system may have a lower limit.
const BACKLOG: i32 = 1024;
/// Time for threads to end that have nothing left to wait for.
const TAKE_DOWN: Duration = Duration::from_secs(2);
/// Pause when the system has no descriptors or threads for another client.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Clients at a time, over all listeners.
    pub max_connections: usize,
    /// The time that a client has for its handshake, TLS included.
    pub handshake_timeout: Duration,
    /// A TCP peer that does not answer for this long is given up.
    pub dead_peer_timeout: Duration,
    /// How long a connection that ends, for whatever reason, waits for the export to answer what is in flight.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max_connections: 256,
            handshake_timeout: Duration::from_secs(10),
            dead_peer_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }
}

/// Whether a listener speaks TLS. Client certificates are demanded by the `rustls` configuration.
#[derive(Clone, Debug)]
pub enum Tls {
    /// No: `STARTTLS` is refused.
    Off,
    /// If the client wants to.
    Offered(Arc<rustls::ServerConfig>),
    /// Nothing is served without it.
    Required(Arc<rustls::ServerConfig>),
}

/// How a server takes leave of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// For good: everything in flight, and everything that still comes, is answered with ESHUTDOWN. A guest sees
    /// the error.
    Refuse,
    /// For a while (a restart): no request is taken any more, those in flight are answered, then the connection
    /// is closed. A client that reconnects sends again what was not answered, and its guest notices nothing.
    Disconnect,
}

/// An NBD server. Dropped, it stops as by [`Stop::Disconnect`].
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<Vec<Listening>>,
}

struct Listening {
    socket: Arc<OwnedFd>,
    thread: JoinHandle<()>,
    /// A socket file, with the device and inode that it had when it was made.
    file: Option<(PathBuf, (u64, u64))>,
}

struct Shared {
    catalog: Arc<dyn Catalog>,
    config: Config,
    clients: Mutex<Clients>,
    /// Told whenever a client is gone.
    gone: Condvar,
}

#[derive(Default)]
struct Clients {
    stopping: Option<Stop>,
    next: u64,
    here: BTreeMap<u64, Client>,
    /// Threads that are as good as over.
    finished: Vec<JoinHandle<()>>,
}

struct Client {
    admitted: Admission,
    socket: Arc<OwnedFd>,
    /// Set once it is out of the handshake.
    connection: Option<Arc<Connection>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A server without listeners.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, config: Config) -> Server {
        let shared = Arc::new(Shared {
            catalog,
            config,
            clients: Mutex::new(Clients::default()),
            gone: Condvar::new(),
        });
        Server { shared, listeners: Mutex::new(Vec::new()) }
    }

    /// Listens on a unix socket that only this user can connect to. A socket file that a dead process left
    /// behind is replaced.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if somebody listens there, or the path is something else than a socket.
    pub fn bind_unix(&self, path: impl AsRef<Path>, tls: Tls) -> io::Result<()> {
        let path = path.as_ref();
        let socket = match listen_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen_unix(path)
            }
            other => other,
        }?;
        let stat = rustix::fs::lstat(path)?;
        self.listen(socket, Kind::Unix, tls, Some((path.to_owned(), (stat.st_dev, stat.st_ino))))
    }

    /// Listens on a TCP address. Returns the address, with the port that the system chose if 0 was asked for.
    ///
    /// # Errors
    ///
    /// As the system gives them.
    pub fn bind_tcp(&self, address: impl ToSocketAddrs, tls: Tls) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        self.listen(listener.into(), Kind::Tcp, tls, None)?;
        Ok(address)
    }

    /// Number of clients, those in the handshake included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.lock().here.len()
    }

    /// Stops: no new clients; those that are here are dealt with as `how` says; all threads end. Returns how many
    /// clients had to be left behind because their export would not let go of a thread in time: none, unless an
    /// export is stuck.
    pub fn stop(&self, how: Stop) -> usize {
        let listeners = mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        for listening in &listeners {
            // A listener that is shut down returns from its wait for clients.
            wire::close(&listening.socket);
        }
        for Listening { thread, file, .. } in listeners {
            let _ = thread.join();
            if let Some((path, identity)) = file {
                let is_ours =
                    rustix::fs::lstat(&path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity);
                if is_ours && let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "the socket file could not be removed");
                }
            }
        }
        self.shared.dismiss(how)
    }

    fn listen(
        &self,
        socket: OwnedFd,
        kind: Kind,
        tls: Tls,
        file: Option<(PathBuf, (u64, u64))>,
    ) -> io::Result<()> {
        let socket = Arc::new(socket);
        let thread = thread::Builder::new().name("nbd-listen".into()).spawn({
            let (shared, socket) = (self.shared.clone(), socket.clone());
            move || accept(&shared, &socket, kind, &tls)
        })?;
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Listening { socket, thread, file });
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.shared.lock().stopping.is_none() {
            self.stop(Stop::Disconnect);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client in its handshake is told now.
    fn admission(&self, admitted: Admission) -> Admission {
        match self.lock().stopping {
            Some(_) => Admission::Stopping,
            None => admitted,
        }
    }

    /// Begins a client's thread.
    fn welcome(self: &Arc<Shared>, socket: OwnedFd, kind: Kind, tls: &Tls) {
        let socket = Arc::new(socket);
        let mut clients = self.lock();
        // They have left the lock that we hold as the last thing they do.
        clients.finished.drain(..).for_each(|thread| drop(thread.join()));
        let turned_away = clients.here.values().filter(|client| client.admitted == Admission::Full).count();
        let admitted = match clients.here.len() - turned_away {
            _ if clients.stopping.is_some() => return,
            here if here < self.config.max_connections => Admission::Open,
            _ if turned_away < MAX_TURNED_AWAY => Admission::Full,
            _ => {
                tracing::warn!(limit = self.config.max_connections, "too many clients: one is cut off");
                return;
            }
        };
        if let Err(error) = wire::prepare(&socket, kind, self.config.dead_peer_timeout) {
            tracing::debug!(%error, "a client was gone before it was served");
            return;
        }
        let id = clients.next;
        clients.next += 1;
        let thread = thread::Builder::new().name(format!("nbd-{id}")).spawn({
            let (shared, socket, tls) = (self.clone(), socket.clone(), tls.clone());
            move || {
                let _leave = Leave { shared: &shared, id };
                if let Err(error) = attend(&shared, id, socket, admitted, &tls) {
                    tracing::debug!(client = id, %error, "a client did not get through its handshake");
                }
            }
        });
        match thread {
            Ok(thread) => {
                clients.here.insert(id, Client { admitted, socket, connection: None, thread: Some(thread) });
            }
            Err(error) => {
                drop(clients);
                tracing::warn!(%error, "no thread for another client");
                thread::sleep(EXHAUSTED_PAUSE);
            }
        }
    }

    /// Takes note that a client is out of its handshake, so that it can be stopped properly.
    fn started(&self, id: u64, connection: &Arc<Connection>) {
        let mut clients = self.lock();
        if let Some(client) = clients.here.get_mut(&id) {
            client.connection = Some(connection.clone());
        }
        if let Some(how) = clients.stopping {
            drop(clients);
            dismiss(connection, how);
        }
    }

    fn dismiss(&self, how: Stop) -> usize {
        let mut clients = self.lock();
        clients.stopping = Some(how);
        let connections: Vec<_> = clients
            .here
            .values()
            .filter_map(|client| {
                // A handshake ends by itself when nothing more comes.
                wire::stop_receiving(&client.socket);
                client.connection.clone()
            })
            .collect();
        drop(clients);
        connections.iter().for_each(|connection| dismiss(connection, how));
        // A connection that has waited in vain still has to be taken down.
        let deadline = Instant::now() + self.config.grace + TAKE_DOWN;
        let mut clients = self.lock();
        while !clients.here.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                tracing::error!(clients = clients.here.len(), "an export does not let go of its clients");
                clients.here.values().for_each(|client| wire::close(&client.socket));
                break;
            };
            clients = self.gone.wait_timeout(clients, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let left_behind = clients.here.len();
        let finished = mem::take(&mut clients.finished);
        drop(clients);
        finished.into_iter().for_each(|thread| drop(thread.join()));
        left_behind
    }
}

fn dismiss(connection: &Connection, how: Stop) {
    match how {
        Stop::Refuse => connection.refuse(Errno::Shutdown),
        Stop::Disconnect => connection.wind_down(),
    }
}

/// Removes a client from the list when its thread ends, by a panic too.
struct Leave<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut clients = self.shared.lock();
        if let Some(client) = clients.here.remove(&self.id) {
            wire::close(&client.socket);
            clients.finished.extend(client.thread);
        }
        self.shared.gone.notify_all();
    }
}

/// A listener's thread.
fn accept(shared: &Arc<Shared>, listener: &OwnedFd, kind: Kind, tls: &Tls) {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => shared.welcome(socket, kind, tls),
            // What `stop` does to a listener.
            Err(SystemError::INVAL) => return,
            Err(SystemError::MFILE | SystemError::NFILE | SystemError::NOBUFS | SystemError::NOMEM) => {
                tracing::warn!("no descriptor for another client");
                thread::sleep(EXHAUSTED_PAUSE);
            }
            Err(SystemError::CONNABORTED | SystemError::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                thread::sleep(EXHAUSTED_PAUSE);
            }
        }
    }
}

/// A client's thread: handshake, then service.
fn attend(
    shared: &Arc<Shared>,
    id: u64,
    socket: Arc<OwnedFd>,
    admitted: Admission,
    tls: &Tls,
) -> io::Result<()> {
    let deadline = Instant::now() + shared.config.handshake_timeout;
    let Some((wire, arrived, session)) = negotiate(shared, Wire::plain(socket), admitted, tls, deadline)?
    else {
        return Ok(());
    };
    wire.wait_until(None)?;
    let name = session.name.clone();
    tracing::info!(client = id, export = name, terms = ?session.terms, "a client is attached");
    let grace = shared.config.grace;
    connection::serve(wire, arrived, session, grace, |connection| shared.started(id, connection))?;
    tracing::info!(client = id, export = name, "a client is gone");
    Ok(())
}

/// Runs the handshake; `None` if it ended without a session.
fn negotiate(
    shared: &Shared,
    mut wire: Wire,
    admitted: Admission,
    tls: &Tls,
    deadline: Instant,
) -> io::Result<Option<(Wire, Vec<u8>, Session)>> {
    let policy = match tls {
        Tls::Off => TlsPolicy::Off,
        Tls::Offered(_) => TlsPolicy::Offered,
        Tls::Required(_) => TlsPolicy::Required,
    };
    let mut receiver = Receiver::default();
    let mut input = Vec::with_capacity(4096);
    let mut out = Vec::new();
    let mut handshake = Handshake::new(policy, &mut out);
    loop {
        let (used, step) = handshake.handle(&input, &*shared.catalog, shared.admission(admitted), &mut out);
        input.drain(..used);
        if !out.is_empty() {
            wire.send_all(&out, deadline)?;
            out.clear();
        }
        match step {
            Step::Reply => {}
            Step::More => {
                if input.len() == input.capacity() {
                    input.reserve(input.len().max(4096));
                }
                if wire.receive(&mut receiver, &mut input, Some(deadline))? == 0 {
                    return Ok(None);
                }
            }
            Step::StartTls => {
                let (Tls::Offered(config) | Tls::Required(config)) = tls else {
                    return Err(io::Error::other("TLS was agreed upon and is not configured"));
                };
                wire = wire.start_tls(config.clone(), &input, deadline)?;
                input.clear();
                handshake.encrypted();
            }
            Step::Serve(session) => return Ok(Some((wire, input, session))),
            Step::Close => {
                wire.close(wire::Goodbye::Said);
                return Ok(None);
            }
        }
    }
}

fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode of the socket, so there is no moment at which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("{}: {what}", path.display()));
    let stat = rustix::fs::lstat(path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(in_use("exists and is not a socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(in_use("another process listens on it")),
    }
}
