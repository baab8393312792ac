//! Sending what is written at once.
//!
//! The driver leaves Nagle's algorithm on: a small write waits until what went
//! before it is acknowledged, which a server that has nothing to answer puts
//! off for 40 ms. `COPY` ends with just such a write, so each of the several
//! copies of a commit cost that. The driver takes no socket of ours and shows
//! none of its own; but the process's sockets can be gone through, and those
//! that lead to the database's port be told.

use std::fs;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, RawFd};

/// Turns Nagle's algorithm off on every TCP connection to `port`. Where there
/// is no `/proc`, commits stay slower and nothing else is amiss.
pub(super) fn set(port: u16) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    for fd in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok()) {
        // SAFETY: the descriptor is only borrowed: it is never closed here.
        // One that is no socket, or is closed meanwhile, answers the first
        // question with an error; one that became another connection to the
        // same port may as well send at once.
        let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(fd) });
        if socket.peer_addr().is_ok_and(|peer| peer.port() == port) {
            // Asked of a connection that just closed, it fails; so be it.
            let _ = socket.set_nodelay(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn connections_to_the_port_send_at_once_and_others_are_left_alone() {
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let connections =
            [&one, &other].map(|listener| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        set(one.local_addr().unwrap().port());
        assert!(connections[0].nodelay().unwrap());
        assert!(!connections[1].nodelay().unwrap());
    }
}
