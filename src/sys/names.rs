//! The name of an address, from the system's resolver.

use std::ffi::CStr;
use std::mem;
use std::net::IpAddr;

/// The name of `address`, if it has one. Asks `/etc/hosts`, name servers, whatever the host is set up for, and waits
/// for them.
pub fn host_of(address: IpAddr) -> Option<String> {
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`, a structure of plain numbers; libc offers no safe
    // constructor.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let length = match address {
        IpAddr::V4(address) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is made to hold every socket address: it is larger than, and aligned for,
            // the `sockaddr_in` written over its beginning, and nothing else refers to it.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(name) };
            mem::size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(address) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above, for `sockaddr_in6`.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(name) };
            mem::size_of::<libc::sockaddr_in6>()
        }
    };
    // NI_MAXHOST of the C library's header.
    let mut host = [0 as libc::c_char; 1025];
    // SAFETY: `storage` holds an address of `length` bytes that is valid for reading, `host` is writable for the
    // length given with it, and no buffer is given for a service's name, which a null pointer with length 0 says.
    // The standard library resolves names to addresses but not addresses to names, hence the direct call.
    let status = unsafe {
        libc::getnameinfo(
            (&raw const storage).cast(),
            length as libc::socklen_t,
            host.as_mut_ptr(),
            host.len() as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if status != 0 {
        return None;
    }
    // SAFETY: on success `host` holds a string that ends with a zero byte, within its length.
    let name = unsafe { CStr::from_ptr(host.as_ptr()) };
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_a_name_and_documentation_addresses_have_none() {
        // A host without an entry for itself may answer nothing, but never something empty.
        assert_ne!(host_of(IpAddr::from([127, 0, 0, 1])).as_deref(), Some(""));
        assert_ne!(host_of("::1".parse().unwrap()).as_deref(), Some(""));
    }
}
