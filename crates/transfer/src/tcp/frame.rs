//! What readers ask and owners tell on a connection: a length, then a header of as many bytes, then what the header announces.

use std::io::{self, IoSlice, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use stallfree_core::LeaseId;

use crate::{KvBytes, KvPart, KvPayload};

/// The longest header: the numbers of a few hundred thousand blocks.
const MAX_HEADER: usize = 1 << 22;

/// The longest header of somebody who has not said who it is.
const MAX_HELLO: usize = 64;

/// The first thing on a connection.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) magic: [u8; 8],
    pub(super) secret: u64,
}

pub(super) const MAGIC: [u8; 8] = *b"sf-kv-1\n";

/// What a reader asks.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Asked {
    Order(Order),
    /// What was staged for this order has been read: was it there all the time?
    Done(u64),
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Order {
    /// Counts the connection's orders.
    pub(super) id: u64,
    pub(super) instance: u32,
    pub(super) lease: LeaseId,
    pub(super) blocks: Vec<u32>,
    /// The reader has an agent of NIXL's that knows this process's.
    pub(super) over_nixl: bool,
}

/// What an owner tells.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Header {
    /// The bytes follow, or there are none.
    Answer(u64, Result<Vec<Part>, String>),
    /// The bytes are to be read over NIXL, at this address, until the reader says that it is done.
    Staged(u64, Vec<Part>, u64),
    /// What was staged for this order was there until now; or not.
    Held(u64, bool),
}

/// A part of the blocks, as many bytes long as it says; parts follow one another.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    layers: (usize, usize),
    heads: (usize, usize),
    piece: usize,
    len: usize,
}

impl Part {
    fn of(KvBytes { part: KvPart { layers, heads }, piece, bytes }: &KvBytes) -> Self {
        Self {
            layers: (layers.start, layers.end),
            heads: (heads.start, heads.end),
            piece: *piece,
            len: bytes.len(),
        }
    }

    fn with(self, bytes: Vec<u8>) -> KvBytes {
        let part =
            KvPart { layers: self.layers.0..self.layers.1, heads: self.heads.0..self.heads.1 };
        KvBytes { part, piece: self.piece, bytes }
    }
}

fn invalid(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

fn header(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    bytes = postcard::to_extend(message, bytes).map_err(invalid)?;
    let len = u32::try_from(bytes.len() - 4).map_err(invalid)?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&header(message)?)
}

pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    read_within(from, MAX_HEADER)
}

pub(super) fn read_hello(from: &mut impl Read) -> io::Result<Hello> {
    read_within(from, MAX_HELLO)
}

fn read_within<T: DeserializeOwned>(from: &mut impl Read, max: usize) -> io::Result<T> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > max {
        return Err(invalid(format!("a header of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(invalid)
}

/// Sends what was ordered.
pub(super) fn write_answer(
    to: &mut impl Write,
    id: u64,
    result: Result<KvPayload, String>,
) -> io::Result<()> {
    let payload = match result {
        Ok(payload) => payload,
        Err(reason) => return write(to, &Header::Answer(id, Err(reason))),
    };
    let header = header(&Header::Answer(id, Ok(payload.parts.iter().map(Part::of).collect())))?;
    // As one, so that no small packet waits for a large one.
    let parts = payload.parts.iter().map(|part| part.bytes.as_slice());
    let mut slices: Vec<IoSlice<'_>> =
        std::iter::once(header.as_slice()).chain(parts).map(IoSlice::new).collect();
    write_all_vectored(to, &mut slices)
}

/// Says where what was ordered can be read.
pub(super) fn write_staged(
    to: &mut impl Write,
    id: u64,
    payload: &KvPayload,
    address: usize,
) -> io::Result<()> {
    let parts = payload.parts.iter().map(Part::of).collect();
    write(to, &Header::Staged(id, parts, address as u64))
}

/// Says whether what was staged was there until now.
pub(super) fn write_held(to: &mut impl Write, id: u64, held: bool) -> io::Result<()> {
    write(to, &Header::Held(id, held))
}

fn write_all_vectored(to: &mut impl Write, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Empty slices in front would look like an end.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match to.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What an owner tells, with the number of the order that it is about.
#[derive(Debug)]
pub(super) enum Told {
    Answer(u64, Result<KvPayload, String>),
    Staged(u64, Staged),
    Held(u64, bool),
}

pub(super) fn read_told(from: &mut impl Read) -> io::Result<Told> {
    let (id, parts) = match read(from)? {
        Header::Held(id, held) => return Ok(Told::Held(id, held)),
        Header::Answer(id, Err(reason)) => return Ok(Told::Answer(id, Err(reason))),
        Header::Staged(id, parts, address) => {
            let address = usize::try_from(address).map_err(invalid)?;
            return Ok(Told::Staged(id, Staged { parts, address }));
        }
        Header::Answer(id, Ok(parts)) => (id, parts),
    };
    let mut payload = KvPayload::default();
    for part in parts {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(part.len).map_err(io::Error::other)?;
        // Into memory that nobody has to clear before.
        if from.take(part.len as u64).read_to_end(&mut bytes)? < part.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        payload.parts.push(part.with(bytes));
    }
    Ok(Told::Answer(id, Ok(payload)))
}

/// Blocks that can be read over NIXL.
#[derive(Debug)]
pub(super) struct Staged {
    parts: Vec<Part>,
    address: usize,
}

impl Staged {
    /// Returns where they begin, and how many bytes they are.
    pub(super) fn span(&self) -> Option<(usize, usize)> {
        let len = self.parts.iter().try_fold(0_usize, |len, part| len.checked_add(part.len))?;
        Some((self.address, len))
    }

    /// Makes a payload of as many bytes as [`span`](Self::span) says.
    pub(super) fn fill(self, mut bytes: &[u8]) -> KvPayload {
        let cut = |part: Part| {
            let (own, rest) = bytes.split_at(part.len.min(bytes.len()));
            bytes = rest;
            part.with(own.to_vec())
        };
        KvPayload { parts: self.parts.into_iter().map(cut).collect() }
    }
}
