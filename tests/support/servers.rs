//! What real servers run: nginx and, where a test wants them, sshd, vsftpd and dnsmasq.

use std::net::SocketAddr;
use std::path::PathBuf;

use uvs::types::{Family, ForwardingMethod};

use super::cluster::{Cluster, PLAIN_PORT, SITE_NAME, socket};
use super::{Process, wait_for};

impl Cluster {
    /// nginx: http that redirects to https, https with a certificate of its own, and a plain port, from which files can be
    /// fetched and to which they can be sent.
    pub(super) fn serve(&self, number: u8) -> Process {
        let directory = self.site.path(&format!("nginx{number}"));
        std::fs::create_dir_all(self.files(number)).unwrap();
        let namespace = format!("rs{number}");
        let any = match self.layout.family() {
            Family::V4 => "",
            Family::V6 => "[::]:",
        };
        let place = directory.display();
        self.site
            .run(
                &namespace,
                &format!(
                    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
                     -subj /CN={SITE_NAME} -keyout {place}/key.pem -out {place}/certificate.pem"
                ),
            )
            .ok();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {place}/{what};"))
            .join("\n");
        let configuration = format!(
            "daemon off;
master_process off;
user root;
pid {place}/nginx.pid;
error_log {place}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    {temporary}
    server {{
        listen {any}80 backlog=4096;
        add_header X-Node node{number} always;
        return 301 https://$host$request_uri;
    }}
    server {{
        listen {any}443 ssl;
        ssl_certificate {place}/certificate.pem;
        ssl_certificate_key {place}/key.pem;
        add_header X-Node node{number};
        location / {{ return 200 \"node{number}\\n\"; }}
    }}
    server {{
        listen {any}{PLAIN_PORT} backlog=4096;
        add_header X-Node node{number};
        location = / {{ return 200 \"node{number}\\n\"; }}
        location / {{ root {place}/files; dav_methods PUT; client_max_body_size 64m; }}
    }}
}}
"
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        let log = directory.join("error.log");
        self.site.start(
            &namespace,
            "nginx",
            ["-e", log.to_str().unwrap(), "-p", directory.to_str().unwrap(), "-c", file.to_str().unwrap()],
        )
    }

    /// sshd on a real server, whose greeting names the server.
    pub(crate) fn serve_ssh(&self, number: u8) -> Process {
        let place = self.site.path(&format!("sshd{number}"));
        std::fs::create_dir_all(&place).unwrap();
        std::fs::create_dir_all("/run/sshd").unwrap();
        let key = place.join("key");
        let namespace = format!("rs{number}");
        self.site
            .run(&namespace, &format!("rm -f {0}; ssh-keygen -q -t ed25519 -N '' -f {0}", key.display()))
            .ok();
        let text = format!(
            "Port 22\nHostKey {}\nPidFile none\nVersionAddendum node{number}\nUsePAM no\nMaxStartups 100\n",
            key.display()
        );
        let file = self.site.write(&format!("sshd{number}/sshd_config"), &text);
        let server =
            self.site.start(&namespace, "/usr/sbin/sshd", ["-D", "-e", "-f", file.to_str().unwrap()]);
        self.wait_for_port(number, 22);
        server
    }

    /// vsftpd on a real server, with a file `node` that names the server. Passive transfers go by the virtual address; with
    /// NAT the server knows only its own.
    pub(crate) fn serve_ftp(&self, number: u8) -> Process {
        let root = self.site.path(&format!("ftp{number}"));
        let empty = self.site.path(&format!("ftp{number}.empty"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(&empty).unwrap();
        std::fs::write(root.join("node"), format!("node{number}\n")).unwrap();
        let mut text = format!(
            "background=NO\nanonymous_enable=YES\nlocal_enable=NO\nno_anon_password=YES\n\
             anon_root={}\nsecure_chroot_dir={}\npasv_enable=YES\nseccomp_sandbox=NO\n\
             connect_from_port_20=YES\nxferlog_enable=NO\n",
            root.display(),
            empty.display(),
        );
        text += match self.layout.family() {
            Family::V4 => "listen=YES\n",
            Family::V6 => "listen=NO\nlisten_ipv6=YES\n",
        };
        if self.layout.family() == Family::V4 && self.layout.forwarding != ForwardingMethod::Masquerading {
            text += &format!("pasv_address={}\n", self.layout.vip);
        }
        let file = self.site.write(&format!("vsftpd{number}.conf"), &text);
        let namespace = format!("rs{number}");
        let server = self.site.start(&namespace, "/usr/sbin/vsftpd", [file.to_str().unwrap()]);
        self.wait_for_port(number, 21);
        server
    }

    /// A name server on a real server, for which `node.test` is [`answer`](Self::answer).
    pub(crate) fn serve_names(&self, number: u8, port: u16) -> Process {
        let namespace = format!("rs{number}");
        let address = format!("--address=/node.test/{}", self.answer(number));
        let server = self.site.start(
            &namespace,
            "dnsmasq",
            [
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--pid-file=",
                "--user=root",
                "--no-resolv",
                "--no-hosts",
                &format!("--port={port}"),
                &address,
            ],
        );
        // It listens on TCP, too, when it does on UDP.
        self.wait_for_port(number, port);
        server
    }

    /// The address that a real server's name server knows.
    pub(crate) fn answer(&self, number: u8) -> String {
        match self.layout.family() {
            Family::V4 => format!("10.0.0.{number}"),
            Family::V6 => format!("fd00::{number}"),
        }
    }

    /// Where a real server has the files that its plain port shows.
    pub(crate) fn files(&self, number: u8) -> PathBuf {
        self.site.path(&format!("nginx{number}/files"))
    }

    pub(super) fn wait_for_port(&self, number: u8, port: u16) {
        let address: SocketAddr = socket(&self.server(number), port).parse().unwrap();
        self.site.inside(&format!("rs{number}"), || {
            wait_for("the server listens", || std::net::TcpStream::connect(address).is_ok());
        });
    }
}
