//! A client that outlives its connection, as qemu's block driver and the kernel's do.
//!
//! When the connection is lost, it is made again, and every request that was not answered is sent again, in the
//! order of its submission. That is sound for writes because each is to a fixed place: done twice, it leaves what
//! done once leaves. (Of two writes to one place that are in flight at the same time either may come last, here as
//! on any disk.)
//!
//! What it rests on: a server that answered a write has it. A plain write that was answered and is not flushed
//! survives the death of the server's process; it is not sent again here.

use super::{Address, Answer, Client, Command, Error, Outcome, Volume};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Pause between two attempts to connect.
    pub pause: Duration,
    /// After this long without a connection the error is returned.
    pub give_up_after: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { pause: Duration::from_millis(20), give_up_after: Duration::from_secs(30) }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Reconnecting {
    address: Address,
    export: String,
    timeout: Duration,
    retry: Retry,
    client: Client,
    next: u64,
    /// What was submitted and not collected, by our number.
    outstanding: BTreeMap<u64, Command>,
    /// Our numbers by the present connection's.
    numbers: BTreeMap<u64, u64>,
    reconnections: u64,
}

impl Reconnecting {
    /// Connects, trying as long as `retry` says. `timeout` is how long an answer may take before the connection
    /// counts as lost.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub fn connect(
        address: Address,
        export: &str,
        timeout: Duration,
        retry: Retry,
    ) -> Result<Reconnecting, Error> {
        let client = persist(&address, export, timeout, retry)?;
        Ok(Reconnecting {
            address,
            export: export.to_owned(),
            timeout,
            retry,
            client,
            next: 1,
            outstanding: BTreeMap::new(),
            numbers: BTreeMap::new(),
            reconnections: 0,
        })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.client.size()
    }

    /// How often the connection was lost and made again.
    #[must_use]
    pub fn reconnections(&self) -> u64 {
        self.reconnections
    }

    /// Number of requests that were submitted and not collected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.outstanding.len()
    }

    /// As [`Client::submit`].
    ///
    /// # Errors
    ///
    /// If the connection is lost and cannot be made again.
    pub fn submit(&mut self, command: &Command) -> Result<u64, Error> {
        let number = self.next;
        self.next += 1;
        self.outstanding.insert(number, command.clone());
        match self.client.submit(command) {
            Ok(cookie) => {
                self.numbers.insert(cookie, number);
            }
            Err(Error::Io(_)) => self.reconnect()?,
            Err(error) => return Err(error),
        }
        Ok(number)
    }

    /// As [`Client::collect`].
    ///
    /// # Errors
    ///
    /// If the connection is lost and cannot be made again, or the server breaks the protocol.
    ///
    /// # Panics
    ///
    /// If nothing is in flight.
    pub fn collect(&mut self) -> Result<(u64, Outcome), Error> {
        loop {
            match self.client.collect() {
                Ok((cookie, answer)) => {
                    let number = self
                        .numbers
                        .remove(&cookie)
                        .ok_or(Error::Protocol("an answer to something that was not asked"))?;
                    self.outstanding.remove(&number);
                    return Ok((number, answer));
                }
                Err(Error::Io(_)) => self.reconnect()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the connection again and sends everything that was not answered.
    fn reconnect(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.retry.give_up_after;
        loop {
            let client = persist(&self.address, &self.export, self.timeout, self.retry)?;
            if client.size() != self.client.size() {
                return Err(Error::Protocol("the export came back with another size"));
            }
            self.client = client;
            self.reconnections += 1;
            self.numbers.clear();
            match self.send_outstanding() {
                // A server that takes connections and drops them must not keep us here for ever.
                Err(Error::Io(_)) if Instant::now() < deadline => thread::sleep(self.retry.pause),
                other => return other,
            }
        }
    }

    fn send_outstanding(&mut self) -> Result<(), Error> {
        for (number, command) in &self.outstanding {
            let cookie = self.client.submit(command)?;
            self.numbers.insert(cookie, *number);
        }
        Ok(())
    }
}

impl Volume for Reconnecting {
    fn size(&self) -> u64 {
        Reconnecting::size(self)
    }

    fn run(&mut self, command: &Command) -> Result<Answer, Error> {
        assert!(self.outstanding.is_empty(), "collect what was submitted first");
        self.submit(command)?;
        self.collect()?.1.map_err(Error::Remote)
    }
}

fn persist(address: &Address, export: &str, timeout: Duration, retry: Retry) -> Result<Client, Error> {
    let deadline = Instant::now() + retry.give_up_after;
    loop {
        match Client::connect(address, export, timeout) {
            Ok(client) => return Ok(client),
            // The export may be about to come back as much as the server.
            Err(Error::Io(_) | Error::Refused { .. }) if Instant::now() < deadline => {
                thread::sleep(retry.pause);
            }
            Err(error) => return Err(error),
        }
    }
}
