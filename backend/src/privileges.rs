// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--user`: from root to an ordinary user, for good. Called once, before there is a second thread.

use std::ffi::{CStr, CString};
use std::io;
use std::ptr;

use rustix::io::Errno;
use rustix::thread::{capabilities, set_no_new_privs};

/// Room for the strings of one user's record.
const RECORD: usize = 16 << 10;
/// More groups than any user is in.
const MAX_GROUPS: usize = 4096;

/// Why the process is still who it was, or cannot be sure of it. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// There is no such user.
    #[error("No user {0:?} on this machine")]
    NoSuchUser(String),
    /// Only root can become somebody else.
    #[error("--user {0}: this process was not started as root")]
    NotRoot(String),
    /// It would change nothing.
    #[error("--user {0} is root: name an ordinary user")]
    IsRoot(String),
    /// The system's tables or calls refused.
    #[error("{what}")]
    Call {
        /// The call.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A way back was found.
    #[error("Privileges are not gone after becoming {user}: {what}")]
    NotGone {
        /// The user.
        user: String,
        /// What is left.
        what: &'static str,
    },
}

/// An ordinary user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    name: String,
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl User {
    /// Looks a user up by name.
    ///
    /// # Errors
    /// [`PrivilegeError`].
    pub fn find(name: &str) -> Result<Self, PrivilegeError> {
        let none = || PrivilegeError::NoSuchUser(name.into());
        let c_name = CString::new(name).map_err(|_| none())?;
        let (uid, gid) = ids(&c_name)?.ok_or_else(none)?;
        if uid == 0 {
            return Err(PrivilegeError::IsRoot(name.into()));
        }
        Ok(Self {
            name: name.into(),
            uid,
            gid,
            groups: groups(&c_name, gid)?,
        })
    }

    /// Becomes this user: groups, real, effective and saved ids, no capabilities, no new privileges by exec.
    ///
    /// # Errors
    /// [`PrivilegeError`]; the process must end then.
    pub fn become_for_good(&self) -> Result<(), PrivilegeError> {
        if !rustix::process::geteuid().is_root() {
            return Err(PrivilegeError::NotRoot(self.name.clone()));
        }
        let (uid, gid) = (self.uid, self.gid);
        // SAFETY: the pointer and the length are those of a vector that lives through the call.
        check("setgroups", unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr())
        })?;
        // SAFETY: takes numbers only.
        check("setresgid", unsafe { libc::setresgid(gid, gid, gid) })?;
        // SAFETY: takes numbers only.
        check("setresuid", unsafe { libc::setresuid(uid, uid, uid) })?;
        set_no_new_privs(true).map_err(call("prctl(PR_SET_NO_NEW_PRIVS)"))?;
        self.verify()
    }

    /// There is no way back.
    fn verify(&self) -> Result<(), PrivilegeError> {
        let left = |what| {
            Err(PrivilegeError::NotGone {
                user: self.name.clone(),
                what,
            })
        };
        // SAFETY: takes numbers only; it must fail.
        if unsafe { libc::setresuid(0, 0, 0) } == 0 {
            return left("the process can become root again");
        }
        // SAFETY: as above.
        if self.gid != 0 && unsafe { libc::setresgid(0, 0, 0) } == 0 {
            return left("the process can enter group 0 again");
        }
        let sets = capabilities(None).map_err(call("capget"))?;
        if !(sets.effective | sets.permitted).is_empty() {
            return left("capabilities");
        }
        Ok(())
    }
}

fn call(what: &'static str) -> impl FnOnce(Errno) -> PrivilegeError {
    move |errno| PrivilegeError::Call {
        what,
        source: errno.into(),
    }
}

fn check(what: &'static str, returned: libc::c_int) -> Result<(), PrivilegeError> {
    if returned == 0 {
        return Ok(());
    }
    Err(PrivilegeError::Call {
        what,
        source: io::Error::last_os_error(),
    })
}

/// User and primary group of a name; `None` if nobody has it.
fn ids(name: &CStr) -> Result<Option<(libc::uid_t, libc::gid_t)>, PrivilegeError> {
    // SAFETY: all of it is plain numbers and pointers, for which zero is a value.
    let mut record: libc::passwd = unsafe { std::mem::zeroed() };
    let mut strings: Vec<libc::c_char> = vec![0; RECORD];
    let mut found = ptr::null_mut();
    // SAFETY: the name ends with zero; record, strings and result live through the call, and the length is
    // that of the strings.
    let errno = unsafe {
        libc::getpwnam_r(
            name.as_ptr(),
            &raw mut record,
            strings.as_mut_ptr(),
            strings.len(),
            &raw mut found,
        )
    };
    match errno {
        0 if found.is_null() => Ok(None),
        0 => Ok(Some((record.pw_uid, record.pw_gid))),
        // What some tables answer instead of nothing.
        libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
        errno => Err(call("getpwnam_r")(Errno::from_raw_os_error(errno))),
    }
}

/// Every group of a user.
fn groups(name: &CStr, gid: libc::gid_t) -> Result<Vec<libc::gid_t>, PrivilegeError> {
    let mut groups = vec![0; MAX_GROUPS];
    let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the name ends with zero; `count` says how many the vector has room for.
    let found =
        unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
    let count = usize::try_from(count).unwrap_or(0);
    if found < 0 || count > groups.len() {
        return Err(call("getgrouplist")(Errno::OVERFLOW));
    }
    groups.truncate(count);
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn users_are_found_or_not() {
        assert!(matches!(User::find("root"), Err(PrivilegeError::IsRoot(_))));
        for nobody in ["no-such-user-here", "", "a\0b"] {
            let found = User::find(nobody);
            assert!(
                matches!(found, Err(PrivilegeError::NoSuchUser(_))),
                "{nobody:?}"
            );
        }
        let nobody = User::find("nobody").unwrap();
        assert_ne!(nobody.uid, 0);
        assert!(nobody.groups.contains(&nobody.gid));
    }

    const CHILD: &str = "VFIO_USER_GPU_TEST_BECOME_NOBODY";

    /// Run by the test below in a process of its own.
    #[test]
    fn become_nobody_child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let user = User::find("nobody").unwrap();
        // The test harness has threads already; setresuid of libc takes them all along.
        let outcome = user.become_for_good();
        if rustix::process::getuid().as_raw() == user.uid {
            outcome.unwrap();
            assert!(std::fs::read("/etc/shadow").is_err());
        } else {
            assert!(matches!(outcome, Err(PrivilegeError::NotRoot(_))));
        }
    }

    #[test]
    fn root_is_given_up_for_good_and_others_cannot_try() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "privileges::tests::become_nobody_child"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
    }
}
