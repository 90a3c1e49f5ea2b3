//! One socket, plain or under TLS, as the connection's threads use it.
//!
//! What holds: one thread at a time receives, and one at a time sends; the two need not be the same. A plain
//! socket can be sent to without waiting; under TLS that is not offered, so that whoever must not wait never
//! has to encrypt either.

use super::reply::Outgoing;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Slices of one vectored send: a batch of 32 reads, header and bytes each.
const MAX_SLICES: usize = 64;
/// Plaintext that is encrypted in one go.
const MAX_PLAINTEXT: usize = 64 << 10;
/// Ciphertext that is received in one go.
const CIPHERTEXT_BYTES: usize = 64 << 10;
/// Buffer of a unix socket, as far as the system lets us have it. TCP sizes its own.
const UNIX_SEND_BUFFER: usize = 4 << 20;

/// A socket, and TLS if it is up.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Arc<OwnedFd>,
    tls: Option<Mutex<rustls::ServerConnection>>,
}

/// What kind of socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unix,
    Tcp,
}

/// What only the receiving thread needs.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    ciphertext: Vec<u8>,
}

/// Prepares a socket that was just accepted. A TCP peer that does not answer for `dead_peer` is given up.
pub(super) fn prepare(socket: &OwnedFd, kind: Kind, dead_peer: Duration) -> io::Result<()> {
    match kind {
        Kind::Unix => sockopt::set_socket_send_buffer_size(socket, UNIX_SEND_BUFFER)?,
        Kind::Tcp => {
            sockopt::set_tcp_nodelay(socket, true)?;
            // The user timeout ends a connection whose data is not acknowledged; the probes, one that is idle.
            let probe = (dead_peer / 4).max(Duration::from_secs(1));
            sockopt::set_socket_keepalive(socket, true)?;
            sockopt::set_tcp_keepidle(socket, probe)?;
            sockopt::set_tcp_keepintvl(socket, probe)?;
            sockopt::set_tcp_keepcnt(socket, 3)?;
            let ms = u32::try_from(dead_peer.as_millis()).unwrap_or(u32::MAX);
            sockopt::set_tcp_user_timeout(socket, ms)?;
        }
    }
    Ok(())
}

impl Wire {
    pub(super) fn plain(socket: Arc<OwnedFd>) -> Wire {
        Wire { socket, tls: None }
    }

    /// Does the server's half of a TLS handshake, whose first bytes may have arrived already.
    pub(super) fn start_tls(
        self,
        config: Arc<rustls::ServerConfig>,
        arrived: &[u8],
        deadline: Instant,
    ) -> io::Result<Wire> {
        let mut tls = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(2 * MAX_PLAINTEXT));
        let mut stream = Deadline { wire: &self, arrived, deadline };
        tls.complete_io(&mut stream)?;
        if !stream.arrived.is_empty() {
            // Records behind the client's last handshake message, in one go with it: take them in as well.
            while tls.wants_read() && !stream.arrived.is_empty() {
                tls.read_tls(&mut stream.arrived)?;
                tls.process_new_packets().map_err(io::Error::other)?;
            }
        }
        Ok(Wire { tls: Some(Mutex::new(tls)), ..self })
    }

    /// Bounds the next receive or send that waits; `None` for no bound, on any.
    pub(super) fn wait_until(&self, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = match deadline {
            None => None,
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                None | Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
                // Zero would mean for ever.
                Some(left) => Some(left.max(Duration::from_millis(1))),
            },
        };
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, timeout)?;
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Send, timeout)?;
        Ok(())
    }

    /// Appends what has arrived to `into`, waiting for something if there is nothing; 0 at the end of the stream.
    /// Takes about as much as `into` has spare capacity, of which there must be some. `TimedOut` at the deadline,
    /// also if the peer has sent pieces of a TLS record until then.
    pub(super) fn receive(
        &self,
        receiver: &mut Receiver,
        into: &mut Vec<u8>,
        deadline: Option<Instant>,
    ) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.receive_raw(into, deadline);
        };
        let before = into.len();
        match drain_plaintext(&mut lock(tls), into) {
            Ok(()) if into.len() > before => return Ok(into.len() - before),
            Ok(()) => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        loop {
            receiver.ciphertext.clear();
            receiver.ciphertext.reserve_exact(CIPHERTEXT_BYTES);
            // A stream that ends without TLS saying so was cut; for a block device that is an end like any other,
            // since a request that is not here whole is never applied.
            if self.receive_raw(&mut receiver.ciphertext, deadline)? == 0 {
                return Ok(0);
            }
            let mut rest = &receiver.ciphertext[..];
            let mut tls = lock(tls);
            while !rest.is_empty() {
                if tls.read_tls(&mut rest)? == 0 {
                    break;
                }
                tls.process_new_packets().map_err(io::Error::other)?;
                match drain_plaintext(&mut tls, into) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(()) if into.len() == before => return Ok(0),
                    other => other?,
                }
            }
            if into.len() > before {
                return Ok(into.len() - before);
            }
        }
    }

    /// Whether [`Wire::send_now`] can be used.
    pub(super) fn sends_now(&self) -> bool {
        self.tls.is_none()
    }

    /// Sends as much as the socket takes without waiting; the rest stays in `out`.
    pub(super) fn send_now(&self, out: &mut Outgoing) -> io::Result<()> {
        match self.send_plain(out, SendFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Sends everything.
    pub(super) fn send(&self, out: &mut Outgoing) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return self.send_plain(out, SendFlags::empty());
        };
        let mut ciphertext = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = out.slices(&mut slices);
            let taken = encrypt(&mut lock(tls), &slices[..count], &mut ciphertext)?;
            out.advance(taken);
            self.send_bytes(&ciphertext, None)?;
            ciphertext.clear();
        }
        Ok(())
    }

    /// Sends bytes, until the deadline; for the handshake.
    pub(super) fn send_all(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let Some(tls) = &self.tls else {
            return self.send_bytes(bytes, Some(deadline));
        };
        let mut ciphertext = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = encrypt(&mut lock(tls), &[IoSlice::new(rest)], &mut ciphertext)?;
            rest = &rest[taken..];
        }
        self.send_bytes(&ciphertext, Some(deadline))
    }

    /// Nothing more is received; what has arrived still is.
    pub(super) fn stop_receiving(&self) {
        stop_receiving(&self.socket);
    }

    /// Ends the connection in both directions: whoever waits on it returns.
    pub(super) fn close(&self, goodbye: Goodbye) {
        if let (Some(tls), Goodbye::Said) = (&self.tls, goodbye) {
            let mut ciphertext = Vec::new();
            let mut tls = lock(tls);
            tls.send_close_notify();
            // If it does not fit without waiting, the peer sees the end of the stream alone.
            if drain_ciphertext(&mut tls, &mut ciphertext).is_ok() {
                let _ =
                    rustix::net::send(&self.socket, &ciphertext, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        }
        close(&self.socket);
    }

    fn receive_raw(&self, into: &mut Vec<u8>, deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            if deadline.is_some() {
                self.wait_until(deadline)?;
            }
            let spare = rustix::buffer::spare_capacity(into);
            match rustix::net::recv(&self.socket, spare, RecvFlags::empty()) {
                Ok((received, _)) => return Ok(received),
                Err(Errno::INTR) => {}
                // How the system reports that a socket's timeout has passed.
                Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send_plain(&self, out: &mut Outgoing, flags: SendFlags) -> io::Result<()> {
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = out.slices(&mut slices);
            let sent = match &slices[..count] {
                [one] => rustix::net::send(&self.socket, one, flags | SendFlags::NOSIGNAL),
                many => rustix::net::sendmsg(
                    &self.socket,
                    many,
                    &mut SendAncillaryBuffer::default(),
                    flags | SendFlags::NOSIGNAL,
                ),
            };
            match sent {
                Ok(sent) => out.advance(sent),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send_bytes(&self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        while !bytes.is_empty() {
            if deadline.is_some() {
                self.wait_until(deadline)?;
            }
            match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether the peer is told that the stream ends here on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goodbye {
    Said,
    Unsaid,
}

/// Nothing more is received on the socket; what has arrived still is.
pub(super) fn stop_receiving(socket: &OwnedFd) {
    // It fails only if the connection is gone, and then it is what was wanted.
    let _ = rustix::net::shutdown(socket, Shutdown::Read);
}

/// Ends a connection in both directions.
pub(super) fn close(socket: &OwnedFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}

/// Appends the plaintext that is there. `Ok` with nothing appended is the end of the stream.
fn drain_plaintext(tls: &mut rustls::ServerConnection, into: &mut Vec<u8>) -> io::Result<()> {
    let mut reader = tls.reader();
    let before = into.len();
    loop {
        let chunk = match reader.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && into.len() > before => return Ok(()),
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            return Ok(());
        }
        into.extend_from_slice(chunk);
        let len = chunk.len();
        reader.consume(len);
    }
}

/// Encrypts some of the slices; returns how much of them.
fn encrypt(
    tls: &mut rustls::ServerConnection,
    slices: &[IoSlice<'_>],
    ciphertext: &mut Vec<u8>,
) -> io::Result<usize> {
    let mut taken = 0;
    for slice in slices {
        let part = &slice[..slice.len().min(MAX_PLAINTEXT - taken)];
        let written = tls.writer().write(part)?;
        taken += written;
        if written < slice.len() || taken == MAX_PLAINTEXT {
            break;
        }
    }
    drain_ciphertext(tls, ciphertext)?;
    Ok(taken)
}

fn drain_ciphertext(tls: &mut rustls::ServerConnection, ciphertext: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(ciphertext)?;
    }
    Ok(())
}

fn lock(tls: &Mutex<rustls::ServerConnection>) -> MutexGuard<'_, rustls::ServerConnection> {
    // rustls leaves a connection usable, or failing for good, whatever happened.
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream with a deadline for all of it, not for each call.
struct Deadline<'a> {
    wire: &'a Wire,
    arrived: &'a [u8],
    deadline: Instant,
}

impl Read for Deadline<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.arrived.is_empty() {
            return self.arrived.read(buf);
        }
        self.wire.wait_until(Some(self.deadline))?;
        match rustix::net::recv(&self.wire.socket, buf, RecvFlags::empty()) {
            Ok((received, _)) => Ok(received),
            Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for Deadline<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wire.wait_until(Some(self.deadline))?;
        Ok(rustix::net::send(&self.wire.socket, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// N25: a peer that is dead is noticed, whether or not there is something to send to it.
    #[test]
    fn n25_dead_peers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = OwnedFd::from(listener.accept().unwrap().0);
        prepare(&socket, Kind::Tcp, Duration::from_secs(40)).unwrap();
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 40_000);
        let probes = sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        let noticed = sockopt::tcp_keepidle(&socket).unwrap() + probes;
        assert_eq!(noticed, Duration::from_secs(40));
    }

    #[test]
    fn a_receive_with_a_deadline_ends() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let wire = Wire::plain(Arc::new(ours.into()));
        let deadline = Instant::now() + Duration::from_millis(5);
        let mut into = Vec::with_capacity(10);
        for _ in 0..2 {
            let error = wire.receive(&mut Receiver::default(), &mut into, Some(deadline)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        // More than the system buffers: a peer that reads nothing does not keep us either.
        let error = wire.send_all(&vec![0; 32 << 20], Instant::now() + Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
    }
}
