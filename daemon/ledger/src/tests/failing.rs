//! A disk that fails at its n-th operation: an error, never a panic, never a wrong state.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use redb::StorageBackend;

use super::{boot, lease, put_taints, taint};
use crate::{
    CommitError, Ledger, Write,
    ledger::image,
    store::Contents,
    verify::{self, MemoryDisk},
    verify_bytes,
};

/// A disk in memory that allows so many changes, and fails every one after them.
#[derive(Debug)]
struct FailingDisk {
    memory: MemoryDisk,
    left: AtomicUsize,
}

impl FailingDisk {
    fn spend(&self) -> io::Result<()> {
        let spend = |left: usize| left.checked_sub(1);
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.spend()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.spend()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.spend()?;
        self.memory.write(offset, data)
    }
}

fn commits() -> Vec<Vec<Write>> {
    let many = (0..60).map(|number| Write::PutLease(lease(&format!("m-{number}"), number)));
    vec![
        vec![Write::PutLease(lease("a", 1)), put_taints("GPU-1", vec![taint("link", 1)])],
        many.collect(),
        vec![Write::RemoveLease("a".parse().expect("a valid claim id"))],
    ]
}

/// Runs a start and the commits on a disk that allows `changes`; true if all succeeded.
fn run(changes: usize) -> bool {
    let empty = Contents { sequence: 0, boot: None, records: std::collections::BTreeMap::new() };
    let bytes = image(&empty).expect("an empty ledger can be made");
    let contents = verify::contents(bytes.clone()).expect("an empty ledger is sound");
    let disk = Arc::new(FailingDisk { memory: MemoryDisk::new(bytes), left: changes.into() });
    let now = || verify_bytes(&disk.memory.to_vec()).expect("what is on the disk is sound");
    let Ok(ledger) = Ledger::start(Arc::clone(&disk) as _, &boot("boot-1"), &contents) else {
        assert_eq!(now().leases, []);
        return false;
    };
    for writes in commits() {
        let before = now();
        let Err(error) = ledger.commit(&writes) else { continue };
        assert!(matches!(error, CommitError::Storage(_)), "{error:?}");
        assert_eq!(error.code(), Some("AP0004"));
        // Even if the disk recovers: what it holds is not known before the next start.
        disk.left.store(usize::MAX, Ordering::SeqCst);
        assert!(ledger.commit(&[]).is_err());
        drop(ledger);
        let after = now();
        let whole = writes.iter().all(|write| match write {
            Write::PutLease(lease) => after.leases.contains(lease),
            Write::RemoveLease(claim) => after.leases.iter().all(|lease| lease.claim.id != *claim),
            Write::PutTaints(device, taints) => {
                after.taints.contains(&(device.clone(), taints.clone()))
            }
            Write::PutOwed(device, owed) => after.owed.contains(&(device.clone(), owed.clone())),
        });
        assert!(whole || after == before, "half a commit after {changes} changes");
        return false;
    }
    true
}

#[test]
fn a_disk_that_fails_at_any_moment_leaves_a_sound_ledger() {
    let first_good = (0..2_000).find(|changes| run(*changes));
    let first_good = first_good.expect("with enough changes allowed, all succeeds");
    assert!(first_good > 10, "{first_good}");
}
