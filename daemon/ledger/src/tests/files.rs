//! Files that are no sound ledger: each is refused by its own code, and left as it is.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use super::{boot, lease, ledger_with, place};
use crate::{Ledger, OpenLedgerError, Write, export};

/// Opens what `make` put at the path: refused with `code`, and untouched.
#[track_caller]
fn check(make: impl FnOnce(&Path), code: &str, message: &str) {
    let (folder, path) = place();
    make(&path);
    let before = fs::symlink_metadata(&path).expect("it is there");
    let bytes = before.is_file().then(|| fs::read(&path).expect("the file can be read"));
    let error = Ledger::open(&path, &boot("boot-2")).expect_err("it is refused");
    let text = error.to_string().replace(&folder.path().display().to_string(), "");
    assert_eq!((error.code(), text.as_str()), (code, message));
    let exported = export(&path).expect_err("it is refused for reading too");
    assert_eq!(exported.code(), Some(code));
    let after = fs::symlink_metadata(&path).expect("it is there");
    assert_eq!(after.modified().expect("a time"), before.modified().expect("a time"));
    assert_eq!(after.permissions(), before.permissions());
    assert_eq!(before.is_file().then(|| fs::read(&path).expect("readable")), bytes);
    let names = fs::read_dir(folder.path()).expect("the folder can be read").count();
    assert_eq!(names, 1, "nothing is left behind");
}

fn damaged(path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    ledger_with(path, &[&[Write::PutLease(lease("a", 1))]]);
    let mut bytes = fs::read(path).expect("the file can be read");
    damage(&mut bytes);
    fs::write(path, bytes).expect("the file can be written");
}

const DAMAGED: &str = "the ledger `/ledger` is damaged";
const FOREIGN: &str = "`/ledger` is not a ledger";

#[test]
fn damage_is_ap0001() {
    check(|path| drop(File::create(path).expect("a new file")), "AP0001", DAMAGED);
    check(|path| damaged(path, |bytes| bytes.truncate(9000)), "AP0001", DAMAGED);
    check(|path| damaged(path, |bytes| bytes[5000..].fill(0)), "AP0001", DAMAGED);
    let too_long = |path: &Path| {
        damaged(path, |_| {});
        let file = OpenOptions::new().write(true).open(path).expect("the file opens");
        file.set_len((256 << 20) + 1).expect("a sparse file");
    };
    check(too_long, "AP0001", DAMAGED);
}

#[test]
fn another_version_is_ap0002() {
    let newer = |bytes: &mut Vec<u8>| {
        bytes[16..20].copy_from_slice(&2_u32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    };
    let message = "the ledger `/ledger` was written by another version of accelpool";
    check(|path| damaged(path, newer), "AP0002", message);
}

#[test]
fn something_else_is_ap0003() {
    check(|path| fs::write(path, "hello").expect("writable"), "AP0003", FOREIGN);
    check(|path| fs::write(path, vec![0; 20_000]).expect("writable"), "AP0003", FOREIGN);
    check(|path| fs::create_dir(path).expect("a new folder"), "AP0003", FOREIGN);
    let redb = |path: &Path| drop(redb::Database::create(path).expect("a bare database"));
    check(redb, "AP0003", FOREIGN);
    let fifo = |path: &Path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a new FIFO");
        assert!(fs::metadata(path).expect("it is there").file_type().is_fifo());
    };
    check(fifo, "AP0003", FOREIGN);
    let socket = |path: &Path| {
        drop(std::os::unix::net::UnixListener::bind(path).expect("a new socket"));
    };
    check(socket, "AP0003", FOREIGN);
    let device = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).expect("a link");
    check(device, "AP0003", FOREIGN);
}

#[test]
fn what_the_system_refuses_is_ap0004() {
    let (_folder, path) = place();
    fs::write(&path, "a file, not a folder").expect("the file can be written");
    for below in [path.join("ledger"), path.join("deeper/ledger")] {
        let error = Ledger::open(&below, &boot("boot-1")).expect_err("there is no such folder");
        assert_eq!(error.code(), "AP0004", "{error:?}");
    }
    let (_folder, path) = place();
    std::os::unix::fs::symlink(&path, &path).expect("a link to itself");
    let error = Ledger::open(&path, &boot("boot-1")).expect_err("it leads nowhere");
    assert_eq!(error.code(), "AP0004", "{error:?}");
}

#[test]
fn a_ledger_in_use_is_ap0005() {
    let (_folder, path) = place();
    let (ledger, _) = Ledger::open(&path, &boot("boot-1")).expect("a new ledger opens");
    for _ in 0..2 {
        let error = Ledger::open(&path, &boot("boot-1")).expect_err("it is in use");
        assert_eq!(error.code(), "AP0005", "{error:?}");
        assert_eq!(export(&path).expect_err("it is in use").code(), Some("AP0005"));
    }
    ledger.commit(&[Write::PutLease(lease("a", 1))]).expect("the first is not disturbed");
    drop(ledger);
    let (_, replayed) = Ledger::open(&path, &boot("boot-1")).expect("it is free again");
    assert_eq!(replayed.leases, [lease("a", 1)]);
}

#[test]
fn a_new_ledger_is_for_its_owner_alone() {
    let (folder, _) = place();
    let path = folder.path().join("var/lib/ledger");
    ledger_with(&path, &[]);
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&folder.path().join("var/lib")), 0o700);
    assert_eq!(mode(&folder.path().join("var")), 0o700);
    let names = fs::read_dir(path.parent().expect("a folder")).expect("readable").count();
    assert_eq!(names, 1, "nothing is left behind");
}

#[test]
fn one_of_many_daemons_gets_a_new_ledger() {
    let (_folder, path) = place();
    let barrier = std::sync::Barrier::new(8);
    let open = || {
        barrier.wait();
        let opened = Ledger::open(&path, &boot("boot-1"));
        barrier.wait(); // Held until all have tried.
        opened.map(drop)
    };
    let results: Vec<Result<(), OpenLedgerError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    let (good, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(good.len(), 1);
    for error in refused.into_iter().filter_map(Result::err) {
        assert_eq!(error.code(), "AP0005", "{error:?}");
    }
}
