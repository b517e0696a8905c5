//! The front: arms and disarms claims, and keeps one decision thread for each component.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering, mpsc::sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use accelpool_model::{ClaimId, DeviceUuid};
use accelpool_shim::{layout::DEVICES_MAX, sys::now_ns};
use accelpool_turns::{CLAIMS_MAX, ClaimKey, DeviceKey, Turns};

use crate::{
    arming::{Arming, uuid_bytes},
    claim::Claim,
    component::Component,
    folder::Folder,
    judge::{Held, Strikes, Violation},
    post::{Address, Estate, Message, mailbox},
    report::{ENDED_MAX, Ended, Report, Told},
    sample::{Samples, Witness},
};

/// A decision thread answers within a turn of its loop; one that does not has died.
const ANSWER: Duration = Duration::from_secs(5);

/// Says whether a process, by its id, belongs to a claim.
pub type Admit = Arc<dyn Fn(&ClaimId, i32) -> bool + Send + Sync>;

/// How the arbiter works.
#[derive(Clone)]
pub struct Settings {
    /// The policy's.
    pub policy: accelpool_turns::Settings,
    /// Who may register for a claim, beside having its socket.
    pub admit: Admit,
    /// Who is told of a few turns.
    pub witness: Option<Arc<dyn Witness>>,
}

/// Why a claim was not armed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message documents the variant")]
pub enum ArmError {
    #[error("a claim that takes turns has 1 to {DEVICES_MAX} devices, not {0}")]
    Devices(usize),
    #[error("device {0} is named twice")]
    Twice(DeviceUuid),
    #[error("`{0}` is no identity that a program could find its device by")]
    Identity(DeviceUuid),
    #[error("its devices, and those that claims tie to them, have {CLAIMS_MAX} claims already")]
    Full,
    #[error("the claim's folder `{path}` cannot be made")]
    Folder { path: PathBuf, source: io::Error },
    #[error("a decision thread cannot be started")]
    Thread { source: io::Error },
}

/// All arbiters of the node.
pub struct Arbiter {
    folder: PathBuf,
    settings: Settings,
    incarnation: u64,
    front: Mutex<Front>,
}

#[derive(Default)]
struct Front {
    threads: Vec<Decider>,
    claims: BTreeMap<ClaimId, Armed>,
    devices: BTreeMap<DeviceUuid, DeviceKey>,
    keys: u32,
    strikes: Strikes,
    ended: VecDeque<Ended>,
    /// How many have ended.
    ends: u64,
}

struct Armed {
    key: ClaimKey,
    arming: Arming,
}

/// A decision thread, seen from outside.
struct Decider {
    address: Address,
    told: Arc<Told>,
    devices: BTreeSet<DeviceKey>,
    claims: BTreeSet<ClaimId>,
    thread: JoinHandle<()>,
}

impl Arbiter {
    /// Makes the folder of all claims. Those of an earlier daemon stay until they are armed or
    /// disarmed.
    pub fn start(folder: &Path, settings: Settings) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let incarnation = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            folder: folder.to_owned(),
            settings,
            incarnation,
            front: Mutex::new(Front::default()),
        })
    }

    /// The folder that a claim's containers get, armed or not.
    #[must_use]
    pub fn folder(&self, claim: &ClaimId) -> PathBuf {
        self.folder.join(claim.as_str())
    }

    /// Lets a claim take part, before its containers start. Repeated, it changes nothing; with
    /// other terms it takes those over. Gives the claim's folder.
    pub fn arm(&self, arming: &Arming) -> Result<PathBuf, ArmError> {
        check(arming)?;
        let mut front = self.front();
        self.revive(&mut front);
        self.arm_in(&mut front, arming)
    }

    /// Ends a claim: its gates close for good and its folder goes. Unknown ones are over
    /// already, but for what an earlier daemon left of them.
    pub fn disarm(&self, claim: &ClaimId) -> io::Result<()> {
        let mut front = self.front();
        if let Some(armed) = front.claims.remove(claim) {
            front.disarm(claim, armed.key);
        }
        drop(front);
        let path = self.folder(claim);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // Whoever has the page mapped reads there that the claim is over.
        let folder = Folder::open(path)?;
        for device in &folder.control.devices {
            device.revoke();
        }
        folder.remove()
    }

    /// Claims whose folders are there although nobody armed them since the start.
    pub fn left_behind(&self) -> io::Result<Vec<ClaimId>> {
        let front = self.front();
        let mut left = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if let Some(claim) = name.to_str().and_then(|name| name.parse::<ClaimId>().ok())
                && !front.claims.contains_key(&claim)
            {
                left.push(claim);
            }
        }
        left.sort();
        Ok(left)
    }

    /// Wants the claim off its devices, so that its memory can be moved away.
    pub fn park(&self, claim: &ClaimId) {
        self.front().tell(claim, Message::Park);
    }

    /// Lets a parked claim take part again.
    pub fn resume(&self, claim: &ClaimId) {
        self.front().tell(claim, Message::Resume);
    }

    /// Who used what, as of the last heartbeat.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut front = self.front();
        self.revive(&mut front);
        front.report()
    }

    /// Compares what the vendor says of a device with what was granted. What is seen twice in a
    /// row is a violation: one sample may be older than the change that explains it.
    pub fn judge(&self, device: &DeviceUuid, held: &[Held]) -> Vec<Violation> {
        let mut front = self.front();
        let report = front.report();
        front.strikes.judge(&report, device, held, now_ns())
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        // Nothing that holds it leaves it half changed.
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arm_in(&self, front: &mut Front, arming: &Arming) -> Result<PathBuf, ArmError> {
        let path = self.folder(&arming.claim);
        let known = front.claims.get(&arming.claim).map(|it| (it.key, it.arming.clone()));
        if let Some((key, known)) = known {
            if known == *arming {
                return Ok(path);
            }
            let uuids = |it: &Arming| -> Vec<DeviceUuid> {
                it.devices.iter().map(|device| device.uuid.clone()).collect()
            };
            if uuids(&known) == uuids(arming) {
                front.tell(&arming.claim, |key| Message::Rearm(key, arming.clone()));
                front.claims.insert(arming.claim.clone(), Armed { key, arming: arming.clone() });
                return Ok(path);
            }
            front.claims.remove(&arming.claim);
            front.disarm(&arming.claim, key);
        }
        let devices: Vec<DeviceKey> =
            arming.devices.iter().map(|device| front.device_key(&device.uuid)).collect();
        let key = ClaimKey(front.next_key());
        let index = self.thread_of(front, &devices)?;
        if front.threads[index].claims.len() >= CLAIMS_MAX {
            return Err(ArmError::Full);
        }
        let claim = Claim::new(path.clone(), key, arming.clone(), devices, self.incarnation)
            .map_err(|source| ArmError::Folder { path: path.clone(), source })?;
        let thread = &mut front.threads[index];
        thread.claims.insert(arming.claim.clone());
        thread.address.send(Message::Arm(Box::new(claim)));
        front.claims.insert(arming.claim.clone(), Armed { key, arming: arming.clone() });
        Ok(path)
    }

    /// The thread that decides for all of these devices, from now on if not before.
    fn thread_of(&self, front: &mut Front, devices: &[DeviceKey]) -> Result<usize, ArmError> {
        let touched: Vec<usize> = (0..front.threads.len())
            .filter(|it| devices.iter().any(|key| front.threads[*it].devices.contains(key)))
            .collect();
        let Some((first, others)) = touched.split_first() else {
            let decider = self.decide_for(devices)?;
            front.threads.push(decider);
            return Ok(front.threads.len() - 1);
        };
        let claims: usize = touched.iter().map(|it| front.threads[*it].claims.len()).sum();
        if claims >= CLAIMS_MAX {
            return Err(ArmError::Full);
        }
        // From the last, so that the places of the others stay.
        for other in others.iter().rev() {
            let other = front.threads.remove(*other);
            let estate = other.surrender();
            let thread = &mut front.threads[*first];
            thread.devices.extend(other.devices);
            thread.claims.extend(other.claims);
            if let Some(estate) = estate {
                thread.address.send(Message::Absorb(estate));
            }
            let told = other.told;
            let _ = other.thread.join();
            front.keep(&mut told.report());
        }
        front.threads[*first].devices.extend(devices);
        Ok(*first)
    }

    fn decide_for(&self, devices: &[DeviceKey]) -> Result<Decider, ArmError> {
        let failed = |source| ArmError::Thread { source };
        let (address, mailbox) = mailbox().map_err(failed)?;
        let told = Arc::new(Told::default());
        let turns = Turns::new(self.settings.policy.clone());
        let samples = Samples::new(self.settings.witness.clone());
        let of_front = (self.settings.admit.clone(), samples);
        let component = Component::new(turns, mailbox, of_front, told.clone()).map_err(failed)?;
        let thread = thread::Builder::new()
            .name("arbiter".to_owned())
            .spawn(move || component.run())
            .map_err(failed)?;
        let devices = devices.iter().copied().collect();
        Ok(Decider { address, told, devices, claims: BTreeSet::new(), thread })
    }

    /// Arms again what a thread decided for that has ended of itself. Its tenants saw the
    /// heartbeat stand still, and come back as after a restart of the daemon.
    fn revive(&self, front: &mut Front) {
        let mut lost = BTreeSet::new();
        front.threads.retain_mut(|thread| {
            let over = thread.told.is_over.load(Ordering::SeqCst) || thread.thread.is_finished();
            if over {
                lost.append(&mut thread.claims);
            }
            !over
        });
        for claim in lost {
            let Some(armed) = front.claims.remove(&claim) else { continue };
            if let Err(error) = self.arm_in(front, &armed.arming) {
                tracing::error!(%claim, %error, "a claim has lost its arbiter: its gates fail open");
            }
        }
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        for thread in self.front().threads.drain(..) {
            thread.address.send(Message::Stop);
            let _ = thread.thread.join();
        }
    }
}

impl Decider {
    fn surrender(&self) -> Option<Estate> {
        let (reply, answer) = sync_channel(1);
        self.address.send(Message::Surrender(reply));
        answer.recv_timeout(ANSWER).ok()
    }
}

impl Front {
    fn next_key(&mut self) -> u32 {
        // Four billion claims of one daemon's life are not reached.
        self.keys = self.keys.wrapping_add(1);
        self.keys
    }

    fn device_key(&mut self, uuid: &DeviceUuid) -> DeviceKey {
        if let Some(key) = self.devices.get(uuid) {
            return *key;
        }
        let key = DeviceKey(self.next_key());
        self.devices.insert(uuid.clone(), key);
        key
    }

    fn tell(&self, claim: &ClaimId, message: impl FnOnce(ClaimKey) -> Message) {
        let Some(armed) = self.claims.get(claim) else { return };
        let thread = self.threads.iter().find(|thread| thread.claims.contains(claim));
        if let Some(thread) = thread {
            thread.address.send(message(armed.key));
        }
    }

    fn disarm(&mut self, claim: &ClaimId, key: ClaimKey) {
        let Some(index) = self.threads.iter().position(|it| it.claims.contains(claim)) else {
            return;
        };
        let thread = &mut self.threads[index];
        thread.claims.remove(claim);
        let (reply, answer) = sync_channel(1);
        if thread.address.send(Message::Disarm(key, reply)) {
            let _ = answer.recv_timeout(ANSWER);
        }
        if thread.claims.is_empty() {
            let thread = self.threads.remove(index);
            thread.address.send(Message::Stop);
            let told = thread.told;
            let _ = thread.thread.join();
            self.keep(&mut told.report());
        }
    }

    /// Takes what has ended out of a thread's report.
    fn keep(&mut self, told: &mut Report) {
        for mut ended in told.ended.drain(..) {
            self.ends += 1;
            ended.number = self.ends;
            self.ended.push_back(ended);
        }
        let over = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..over);
    }

    fn report(&mut self) -> Report {
        let mut all = Report::default();
        let threads: Vec<Arc<Told>> = self.threads.iter().map(|it| it.told.clone()).collect();
        for told in threads {
            let mut told = told.report();
            self.keep(&mut told);
            all.told_ns =
                if all.told_ns == 0 { told.told_ns } else { all.told_ns.min(told.told_ns) };
            all.devices.extend(told.devices.iter().cloned());
            all.claims.extend(told.claims.iter().cloned());
        }
        all.ended = self.ended.iter().cloned().collect();
        all.devices.sort_by(|a, b| a.uuid.cmp(&b.uuid));
        all.claims.sort_by(|a, b| (&a.claim, &a.device).cmp(&(&b.claim, &b.device)));
        all
    }
}

fn check(arming: &Arming) -> Result<(), ArmError> {
    let devices = arming.devices.len();
    if !(1..=DEVICES_MAX).contains(&devices) {
        return Err(ArmError::Devices(devices));
    }
    let mut seen = BTreeSet::new();
    for device in &arming.devices {
        if uuid_bytes(&device.uuid).is_none() {
            return Err(ArmError::Identity(device.uuid.clone()));
        }
        if !seen.insert(&device.uuid) {
            return Err(ArmError::Twice(device.uuid.clone()));
        }
    }
    Ok(())
}
