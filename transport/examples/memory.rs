//! A disk in memory over NBD: `memory SOCKET [SIZE-IN-MIB]`. For trying clients, and for measuring what the front
//! end costs when there is nothing behind it.

use bytes::Bytes;
use engine::guest::{Completion, Op, Piece, Reply, Request, Stretch};
use engine::types::Extent;
use std::error::Error;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use transport::block::{Catalog, Export, Later, Shape};
use transport::nbd::{Config, Server, Tls};

struct Memory(RwLock<Vec<u8>>);

impl Memory {
    fn write(&self, f: impl FnOnce(&mut [u8])) -> Reply {
        f(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
        Reply::Done
    }
}

impl Export for Memory {
    fn shape(&self) -> Shape {
        let size = self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64;
        Shape { size, read_only: false, description: "a disk in memory".into() }
    }

    fn submit(&self, requests: &mut Vec<Request>, ready: &mut Vec<Completion>, _later: &Arc<dyn Later>) {
        ready.extend(requests.drain(..).map(|Request { cookie, op, .. }| {
            let reply = match op {
                Op::Write { offset, data } => self.write(|disk| {
                    disk[range(Extent::new(offset, data.len() as u64))].copy_from_slice(&data);
                }),
                Op::Trim(extent) | Op::Zero { extent, .. } => self.write(|disk| disk[range(extent)].fill(0)),
                Op::Read(extent) => {
                    let disk = self.0.read().unwrap_or_else(PoisonError::into_inner);
                    Reply::Data(vec![Piece::Bytes(Bytes::copy_from_slice(&disk[range(extent)]))])
                }
                Op::Status(extent) => Reply::Status(vec![Stretch { len: extent.len, hole: false }]),
                Op::Flush | Op::Cache(_) => Reply::Done,
            };
            Completion { cookie, result: Ok(reply) }
        }));
    }
}

/// The front end has checked that it lies within the disk.
fn range(extent: Extent) -> Range<usize> {
    extent.offset as usize..extent.end() as usize
}

struct One(Arc<Memory>);

impl Catalog for One {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        name.is_empty().then(|| self.0.clone() as Arc<dyn Export>)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("where shall the socket be? memory SOCKET [SIZE-IN-MIB]")?;
    let mib: usize = arguments.next().map_or(Ok(1024), |size| size.parse())?;
    let disk = Arc::new(Memory(RwLock::new(vec![0; mib << 20])));
    let server = Server::new(Arc::new(One(disk)), Config::default());
    server.bind_unix(&socket, Tls::Off)?;
    eprintln!("serving {mib} MiB on {socket}");
    loop {
        std::thread::park();
    }
}
