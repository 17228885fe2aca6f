// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Forwarding an access allocates nothing, however often it is done.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::thread;

use vfio_user_client::protocol::deframer::Frame;
use vfio_user_client::protocol::region::MultiWrite;
use vfio_user_client::protocol::transport::split;
use vfio_user_client::protocol::version::{self, Capabilities, Version};
use vfio_user_client::protocol::{Command, Request};
use vfio_user_client::{Client, Options};
use zerocopy::IntoBytes;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread.
struct Counting;

// SAFETY: every call goes to the system's allocator with the caller's own arguments, so its contract is kept
// by whoever keeps ours; counting touches a thread-local without destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Answers VERSION and every access, reads with zeros.
fn serve(stream: UnixStream) {
    let (mut receiver, sender) = split(stream, 4 << 20);
    let zeros = vec![0; 1 << 20];
    while let Ok(Some(Frame::Message { header, body, .. })) = receiver.receive() {
        if header.wants_no_reply() {
            continue;
        }
        let version;
        let (fixed, data) = if header.command == u16::from(Command::Version) {
            let (_, offer) = version::decode(body).unwrap();
            let ours = Capabilities {
                write_multiple: Some(true),
                max_data_xfer_size: Some(1 << 20),
                ..Capabilities::default()
            };
            version = ours.answer(&offer).unwrap().encode(Version::default());
            (&version[..], 0)
        } else {
            match Request::decode(header.command, body).unwrap() {
                Request::RegionRead(access) => {
                    (&body[..16], usize::try_from(access.count).unwrap())
                }
                Request::RegionWrite(..) => (&body[..16], 0),
                other => panic!("{other:?}"),
            }
        };
        let reply = header.reply(fixed.len() + data);
        sender
            .send(&reply, &[fixed.as_bytes(), &zeros[..data]], &[])
            .unwrap();
    }
}

#[test]
fn accesses_allocate_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs));
    let client = Client::from_stream(ours, Options::default()).unwrap();
    let mut long = vec![1; 3 << 20];
    let writes = [MultiWrite::new(4, 0x20, &[1; 8]).unwrap(); 16];
    let before = ALLOCATIONS.get();
    assert!(before > 0, "allocations are counted");
    for _ in 0..100 {
        client.region_read(7, 0, &mut [0; 4]).unwrap();
        client.region_write(7, 0x3c, &[0; 4]).unwrap();
        client.region_write_posted(4, 0x40, &[0; 8]).unwrap();
        client.region_write_multi(&writes).unwrap();
    }
    client.region_read(0, 0, &mut long).unwrap();
    client.region_write(0, 0, &long).unwrap();
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert!(long.iter().all(|&byte| byte == 0));
    drop(client);
    server.join().unwrap();
}
