//! Certificates made for the test, and rustls on both sides of the proxy.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SigningKey as _, date_time_ymd};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
};

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    /// A new one that nobody knows.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "rrlb test CA");
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("CA certificate");
        Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A good certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Leaf {
        self.sign(names, |_| {})
    }

    /// One that ended in 2020.
    pub fn expired(&self, names: &[&str]) -> Leaf {
        self.sign(names, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    /// A good one that ends in this year.
    pub fn sign_until(&self, names: &[&str], year: i32) -> Leaf {
        self.sign(names, |params| params.not_after = date_time_ymd(year, 1, 1))
    }

    /// One that is good for this long.
    pub fn issue_for(&self, names: &[&str], time: std::time::Duration) -> Leaf {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        self.sign(names, |params| params.not_after = date_time_ymd(1970, 1, 1) + (now + time))
    }

    /// One of an authority.
    pub fn issue_authority(&self, name: &str) -> Leaf {
        self.sign(&[name], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
    }

    /// A good one of a client: `CN=name,O=Example`.
    pub fn issue_client(&self, name: &str) -> Leaf {
        self.sign(&[], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example");
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
        })
    }

    /// A revocation list, PEM, to be replaced in this year.
    pub fn revoke(&self, leaves: &[&Leaf], next_year: i32) -> String {
        let revoked = |leaf: &&Leaf| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(leaf.serial()),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2023, 1, 1),
            next_update: date_time_ymd(next_year, 1, 1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: leaves.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("revocation list").pem().expect("PEM")
    }

    /// Writes the CA's certificate and gives its path.
    pub fn write(&self, folder: &Path) -> PathBuf {
        write(&folder.join("ca.pem"), &self.pem)
    }

    /// A client that trusts this CA and speaks these protocols.
    pub fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        self.client_with(alpn, &[&rustls::version::TLS12, &rustls::version::TLS13])
    }

    /// As [`Ca::client`], only with these TLS versions.
    pub fn client_with(&self, alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions);
        let builder = builder.expect("versions").with_root_certificates(self.roots());
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }

    /// A good certificate whose status this URL tells, with the CA's behind it in its file.
    pub fn issue_told_by(&self, names: &[&str], url: &str) -> Leaf {
        let at = element(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
        let access = element(0x30, &element(0x30, &[at, element(0x86, url.as_bytes())].concat()));
        let extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
        let mut leaf = self.sign(names, |params| params.custom_extensions.push(extension));
        leaf.pem.push_str(&self.pem);
        leaf
    }

    /// What an OCSP responder says of a leaf: that it is good from now on, for so many seconds.
    pub fn vouch(&self, leaf: &Leaf, seconds: i64) -> Vec<u8> {
        let (_, ca) = x509_parser::parse_x509_certificate(&self.der).expect("certificate");
        let sha1 = |bytes: &[u8]| {
            ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let now = i64::try_from(now).expect("before the end of time");
        let id = [
            element(0x30, &[element(6, &[0x2b, 14, 3, 2, 26]), element(5, &[])].concat()),
            element(4, &sha1(ca.subject().as_raw())),
            element(4, &sha1(&ca.public_key().subject_public_key.data)),
            element(2, &leaf.serial()),
        ];
        let next = element(0xa0, &generalized_time(now + seconds));
        let single = [element(0x30, &id.concat()), element(0x80, &[]), generalized_time(now), next];
        let single = element(0x30, &single.concat());
        let data = [element(0xa2, &element(4, &[3; 20])), generalized_time(now), element(0x30, &single)];
        let data = element(0x30, &data.concat());
        let signature = [vec![0], self.issuer.key().sign(&data).expect("signature")].concat();
        let algorithm = element(0x30, &element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]));
        ocsp_response(&[data, algorithm, element(3, &signature)].concat())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("CA certificate");
        roots
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let (params, key) = leaf_params(names, change);
        let certificate = params.signed_by(&key, &self.issuer).expect("leaf certificate");
        Leaf::new(&certificate, &key)
    }
}

/// A certificate that vouches for itself.
pub fn self_signed(names: &[&str]) -> Leaf {
    let (params, key) = leaf_params(names, |_| {});
    Leaf::new(&params.self_signed(&key).expect("leaf certificate"), &key)
}

/// A certificate and its key.
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    key_der: Vec<u8>,
    pem: String,
    key_pem: String,
}

impl Leaf {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self {
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// A client that shows this certificate and trusts `ca`.
    pub fn client(&self, ca: &Ca, alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions);
        let builder = builder.expect("versions").with_root_certificates(ca.roots());
        let key = PrivateKeyDer::try_from(self.key_der.clone()).expect("key");
        let mut config = builder.with_client_auth_cert(vec![self.der.clone()], key).expect("certificate and key");
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }

    /// SHA-256 of the certificate, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs_digest(&self.der);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// When it expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        let (_, certificate) = x509_parser::parse_x509_certificate(&self.der).expect("certificate");
        certificate.validity().not_after.timestamp()
    }

    fn serial(&self) -> Vec<u8> {
        let (_, certificate) = x509_parser::parse_x509_certificate(&self.der).expect("certificate");
        certificate.raw_serial().to_vec()
    }

    /// An OCSP response for it, unsigned, which holds until a time such as `20990101000000Z`.
    pub fn ocsp(&self, next_update: &str) -> Vec<u8> {
        let id = [element(0x30, &element(6, &[0x2b, 14, 3, 2, 26])), element(4, &[1; 20]), element(4, &[2; 20])];
        let id = element(0x30, &[id.concat(), element(2, &self.serial())].concat());
        let this = element(0x18, b"20200101000000Z");
        let next = element(0xa0, &element(0x18, next_update.as_bytes()));
        let single = element(0x30, &[id, element(0x80, &[]), this.clone(), next].concat());
        let data = [element(0xa2, &element(4, &[3; 20])), this, element(0x30, &single)].concat();
        let basic = [element(0x30, &data), element(0x30, &element(6, &[42, 3])), element(3, &[0, 1])].concat();
        ocsp_response(&basic)
    }

    /// A TLS server with this certificate.
    pub fn server(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        self.finish(server_builder().with_no_client_auth(), alpn)
    }

    /// A TLS server that wants a client certificate of this CA.
    pub fn server_with_clients(&self, alpn: &[&str], clients: &Ca) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients.roots()), provider());
        let verifier = verifier.build().expect("client verifier");
        self.finish(server_builder().with_client_cert_verifier(verifier), alpn)
    }

    fn finish(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
        alpn: &[&str],
    ) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key_der.clone()).expect("key");
        let mut config = builder.with_single_cert(vec![self.der.clone()], key).expect("certificate and key");
        config.alpn_protocols = protocols(alpn);
        Arc::new(config)
    }

    /// Writes `NAME.pem` and `NAME.key`; gives a flow mapping for `certificates`.
    pub fn write(&self, folder: &Path, name: &str) -> String {
        let cert = write(&folder.join(format!("{name}.pem")), &self.pem);
        let key = write(&folder.join(format!("{name}.key")), &self.key_pem);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("mode of the key");
        format!("{{ cert: {}, key: {} }}", cert.display(), key.display())
    }
}

fn aws_lc_rs_digest(bytes: &[u8]) -> Vec<u8> {
    ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}

/// A successful OCSP response around a basic one.
fn ocsp_response(basic: &[u8]) -> Vec<u8> {
    let kind = element(6, &[0x2b, 6, 1, 5, 5, 7, 48, 1, 1]);
    let bytes = element(0x30, &[kind, element(4, &element(0x30, basic))].concat());
    element(0x30, &[element(10, &[0]), element(0xa0, &bytes)].concat())
}

fn generalized_time(at: i64) -> Vec<u8> {
    let at = x509_parser::time::ASN1Time::from_timestamp(at).expect("time").to_datetime();
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = date.to_calendar_date();
    let text =
        format!("{year:04}{:02}{day:02}{:02}{:02}{:02}Z", u8::from(month), time.hour(), time.minute(), time.second());
    element(0x18, text.as_bytes())
}

/// An element in DER.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(length @ 0..0x80) => out.push(length),
        Ok(length) => out.extend([0x81, length]),
        Err(_) => out.extend([0x82, (content.len() >> 8) as u8, content.len() as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn leaf_params(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    change(&mut params);
    (params, KeyPair::generate().expect("key"))
}

fn server_builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    path.to_owned()
}

/// A client that takes any certificate: for names none was issued for.
pub fn client_trusting_any() -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder =
        builder.expect("versions").dangerous().with_custom_certificate_verifier(Arc::<AnyCertificate>::default());
    Arc::new(builder.with_no_client_auth())
}

/// As [`client_trusting_any`], and what came with the server's certificate.
pub fn client_seeing_ocsp() -> (Arc<ClientConfig>, Arc<AnyCertificate>) {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let seen = Arc::<AnyCertificate>::default();
    let builder = builder.expect("versions").dangerous().with_custom_certificate_verifier(seen.clone());
    (Arc::new(builder.with_no_client_auth()), seen)
}

/// Takes any certificate.
#[derive(Debug, Default)]
pub struct AnyCertificate {
    /// The OCSP response of the last handshake.
    pub ocsp: std::sync::Mutex<Vec<u8>>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.ocsp.lock().expect("no panic") = ocsp.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
