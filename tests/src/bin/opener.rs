//! Opens the device node of its first argument as often as its second says, and prints how often
//! it was refused and how often admitted. Behind a simulated node there is no driver: to be
//! admitted is ENXIO.

#![forbid(unsafe_code)]

use std::{env, fs::File};

use nix::errno::Errno;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, node, count] = arguments.as_slice() else { panic!("a node, and how often") };
    let count: u32 = count.parse().expect("how often");
    let (mut refused, mut admitted) = (0, 0);
    for _ in 0..count {
        match File::open(node).map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
            Err(Some(Errno::EPERM)) => refused += 1,
            Ok(_) | Err(Some(Errno::ENXIO)) => admitted += 1,
            Err(other) => panic!("nobody expected this: {other:?}"),
        }
    }
    println!("{refused} {admitted}");
}
