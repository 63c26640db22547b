//! Messages on a connection: a length, then as many bytes.

use std::io::{self, Read, Write};

/// No message between ranks is longer: activations of a few ten thousand tokens.
const MAX_BYTES: usize = 1 << 32;

pub(crate) fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let len = (bytes.len() as u64).to_le_bytes();
    to.write_all(&len).and_then(|()| to.write_all(bytes)).and_then(|()| to.flush()).map_err(plain)
}

pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    read(from).map_err(plain)
}

/// Says what an error of a connection means, where its own words are about buffers and pipes.
fn plain(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        kind @ (BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) => {
            io::Error::new(kind, "the connection closed")
        }
        _ => error,
    }
}

fn read(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > MAX_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    // Grows as bytes come: a length is only what somebody says.
    if from.take(len as u64).read_to_end(&mut bytes)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
