//! Who may call what.

use accelpool_proto::trace::Here;
use nix::unistd::{Gid, Group, Uid, User};
use tonic::{Code, Request, Status, transport::server::UdsConnectInfo};

use crate::{
    audit::Asker,
    error::{PERMISSION_DENIED, coded},
};

/// Decides who may read and who may change, by the caller's kernel credentials.
#[derive(Debug, Clone)]
pub struct Access {
    group: String,
    gid: Option<Gid>,
    own: Uid,
}

impl Access {
    /// Reading for root and the members of `group`, changing for root. A group that does not
    /// exist has no members. A daemon that does not run as root (a developer's) also obeys
    /// its own user.
    #[must_use]
    pub fn new(group: &str) -> Self {
        let gid = Group::from_name(group).ok().flatten().map(|group| group.gid);
        Self { group: group.to_owned(), gid, own: Uid::effective() }
    }

    /// The group's number, if the group exists.
    #[must_use]
    pub fn gid(&self) -> Option<Gid> {
        self.gid
    }

    /// Lets a reader pass.
    pub fn read<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let (uid, gid) = caller(request)?;
        if self.may_change(uid) || self.gid.is_some_and(|own| self.is_member(uid, gid, own)) {
            return Ok(());
        }
        let message = format!("uid {uid} may not read: join the group `{}`", self.group);
        Err(coded(Code::PermissionDenied, PERMISSION_DENIED, message))
    }

    /// Lets a changer pass.
    pub fn change<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let (uid, _) = caller(request)?;
        if self.may_change(uid) {
            return Ok(());
        }
        let message = format!("uid {uid} may not change anything: call as root");
        Err(coded(Code::PermissionDenied, PERMISSION_DENIED, message))
    }

    fn may_change(&self, uid: Uid) -> bool {
        uid.is_root() || uid == self.own
    }

    /// True if the caller's own group is `group` or the host lists the user as a member. The
    /// kernel passes no supplementary groups with the credentials.
    fn is_member(&self, uid: Uid, gid: Gid, group: Gid) -> bool {
        if gid == group {
            return true;
        }
        let Ok(Some(user)) = User::from_uid(uid) else { return false };
        let Ok(Some(listed)) = Group::from_name(&self.group) else { return false };
        user.gid == group || listed.mem.contains(&user.name)
    }
}

fn caller<T>(request: &Request<T>) -> Result<(Uid, Gid), Status> {
    let credentials = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|connection| connection.peer_cred)
        .ok_or_else(|| {
            let message = "the kernel does not say who calls";
            coded(Code::PermissionDenied, PERMISSION_DENIED, message)
        })?;
    Ok((Uid::from_raw(credentials.uid()), Gid::from_raw(credentials.gid())))
}

/// Who calls, and in which span.
pub(super) fn asker<T>(request: &Request<T>, here: &Here) -> Asker {
    let pid = caller_pid(request);
    let ids = caller(request).ok();
    let (uid, gid) = (ids.map(|(uid, _)| uid.as_raw()), ids.map(|(_, gid)| gid.as_raw()));
    Asker { uid, gid, pid, here: here.clone() }
}

/// The calling process, where this pid namespace has a number for it.
pub(super) fn caller_pid<T>(request: &Request<T>) -> Option<u32> {
    let connection = request.extensions().get::<UdsConnectInfo>()?;
    let pid = connection.peer_cred.and_then(|credentials| credentials.pid())?;
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_credentials_is_refused() {
        let access = Access::new("no-such-group");
        let request = Request::new(());
        let status = access.read(&request).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(access.change(&request).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn only_root_and_the_daemons_own_user_change() {
        let access =
            Access { group: "g".into(), gid: Some(Gid::from_raw(7)), own: Uid::from_raw(0) };
        assert!(access.may_change(Uid::from_raw(0)));
        assert!(!access.may_change(Uid::from_raw(65534)));
        assert!(access.is_member(Uid::from_raw(65534), Gid::from_raw(7), Gid::from_raw(7)));
        assert!(!access.is_member(Uid::from_raw(65534), Gid::from_raw(8), Gid::from_raw(7)));
    }
}
