use super::*;

/// Algorithm, then the digests of nothing, of `abc` and of [`pattern`].
///
/// The first two are the published test vectors (the RFCs and standards of `Cargo.toml`, the RIPEMD and Tiger authors' pages);
/// the third was computed by OpenSSL 3.0 and libgcrypt 1.10, for the RIPEMDs but `rmd160` by this code alone.
/// `wp256`, `wp384`, `tgr128` and `tgr160` are spelled out: what is cut off is part of the format.
const VECTORS: [(HashAlgorithm, [&str; 3]); 23] = [
    (
        HashAlgorithm::Md4,
        ["31d6cfe0d16ae931b73c59d7e0c089c0", "a448017aaf21d8525fc10ae87aa6729d", "20cf9af67127875d66b5a33e39d879c1"],
    ),
    (
        HashAlgorithm::Md5,
        ["d41d8cd98f00b204e9800998ecf8427e", "900150983cd24fb0d6963f7d28e17f72", "bd8c10439abeb42fb5c19745991e360e"],
    ),
    (
        HashAlgorithm::Sha1,
        [
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "36b3862969aef72235b9f6aadcf795eefeacd183",
        ],
    ),
    (
        HashAlgorithm::Rmd160,
        [
            "9c1185a5c5e9fc54612808977ee8f548b2258d31",
            "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc",
            "8abe8eb6ed634e410bebb053e6c126dd70824532",
        ],
    ),
    (
        HashAlgorithm::Sha256,
        [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "c85a431e0fe575b2609289d3a4042414715f400612575a125d2ce5573d608732",
        ],
    ),
    (
        HashAlgorithm::Sha384,
        [
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            "358033b5fc73409a38b4035ffbbaf3096b7fed43cd5eefe43d779698af2e7e311664ae13f71671d900a7ac835b3553ac",
        ],
    ),
    (
        HashAlgorithm::Sha512,
        [
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            "d45b2b8a61bd7f9cc388c96f215f3da57c6137d9a0797dfbaf7a54bb3434d80ccc29f70962dd572f5c0c1eb400a71aaac73b52503aa6bd3215f1c65598f0cc7e",
        ],
    ),
    (
        HashAlgorithm::Sha224,
        [
            "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f",
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
            "0cdaf3088562d2f3d9500a3717166ccbddde2b6e8eecd952d47a3557",
        ],
    ),
    (
        HashAlgorithm::Rmd128,
        ["cdf26213a150dc3ecb610f18f6b38b46", "c14a12199c66e4ba84636b0f69144c77", "5dc9a5064c38c75ed5a57a38f7810e5e"],
    ),
    (
        HashAlgorithm::Rmd256,
        [
            "02ba4c4e5f8ecd1877fc52d64d30e37a2d9774fb1e5d026380ae0168e3c5522d",
            "afbd6e228b9d8cbbcef5ca2d03e6dba10ac0bc7dcbe4680e1e42d2e975459b65",
            "d557a070f3b756c823d214556772a8110f4b8827e028917ba521ce1714f008ce",
        ],
    ),
    (
        HashAlgorithm::Rmd320,
        [
            "22d65d5661536cdc75c1fdf5c6de7b41b9f27325ebc61e8557177d705a0ec880151c3a32a00899b8",
            "de4c01b3054f8930a79d09ae738e92301e5a17085beffdc1b8d116713e74f82fa942d64cdbc4682d",
            "4c4b58d150224b2ea034ecea5a0e96b9cb7b64b3f9fe7508c37bb200a800042a5905bc43757ae57d",
        ],
    ),
    (
        HashAlgorithm::Wp256,
        [
            "19fa61d75522a4669b44e39c1d2e1726c530232130d407f89afee0964997f7a7",
            "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c",
            "0e95f855008e7efee900b3bba7857d5c1c56f274a1d43a17c96ab76e788d26b4",
        ],
    ),
    (
        HashAlgorithm::Wp384,
        [
            "19fa61d75522a4669b44e39c1d2e1726c530232130d407f89afee0964997f7a73e83be698b288febcf88e3e03c4f0757",
            "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c7181eebdb6c57e277d0e34957114cbd6",
            "0e95f855008e7efee900b3bba7857d5c1c56f274a1d43a17c96ab76e788d26b40af1fd6a9b1fd70edf2edb5841e8ca4b",
        ],
    ),
    (
        HashAlgorithm::Wp512,
        [
            "19fa61d75522a4669b44e39c1d2e1726c530232130d407f89afee0964997f7a73e83be698b288febcf88e3e03c4f0757ea8964e59b63d93708b138cc42a66eb3",
            "4e2448a4c6f486bb16b6562c73b4020bf3043e3a731bce721ae1b303d97e6d4c7181eebdb6c57e277d0e34957114cbd6c797fc9d95d8b582d225292076d4eef5",
            "0e95f855008e7efee900b3bba7857d5c1c56f274a1d43a17c96ab76e788d26b40af1fd6a9b1fd70edf2edb5841e8ca4bb4972a23f6bba4e585eb97826694409a",
        ],
    ),
    (
        HashAlgorithm::Tgr128,
        ["24f0130c63ac933216166e76b1bb925f", "f258c1e88414ab2a527ab541ffc5b8bf", "be3a73266bc9746819bd346d9b400ace"],
    ),
    (
        HashAlgorithm::Tgr160,
        [
            "24f0130c63ac933216166e76b1bb925ff373de2d",
            "f258c1e88414ab2a527ab541ffc5b8bf935f7b95",
            "be3a73266bc9746819bd346d9b400ace6455b1d7",
        ],
    ),
    (
        HashAlgorithm::Tgr192,
        [
            "24f0130c63ac933216166e76b1bb925ff373de2d49584e7a",
            "f258c1e88414ab2a527ab541ffc5b8bf935f7b951c132951",
            "be3a73266bc9746819bd346d9b400ace6455b1d75828fa4a",
        ],
    ),
    (
        HashAlgorithm::Sm3,
        [
            "1ab21d8355cfa17f8e61194831e81a8f22bec8c728fefb747ed035eb5082aa2b",
            "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0",
            "24c8efb6f82940d6f2fb028cfbf11a8d19f840c512cb5add611348a09b9e2fb1",
        ],
    ),
    (
        HashAlgorithm::Streebog256,
        [
            "3f539a213e97c802cc229d474c6aa32a825a360b2a933a949fd925208d9ce1bb",
            "4e2919cf137ed41ec4fb6270c61826cc4fffb660341e0af3688cd0626d23b481",
            "ddc7db7e39d1e53a52ba4fbc9f9edc76c176b6154e5c05c80e9f15d02c94d94f",
        ],
    ),
    (
        HashAlgorithm::Streebog512,
        [
            "8e945da209aa869f0455928529bcae4679e9873ab707b55315f56ceb98bef0a7362f715528356ee83cda5f2aac4c6ad2ba3a715c1bcd81cb8e9f90bf4c1c1a8a",
            "28156e28317da7c98f4fe2bed6b542d0dab85bb224445fcedaf75d46e26d7eb8d5997f3e0915dd6b7f0aab08d9c8beb0d8c64bae2ab8b3c8c6bc53b3bf0db728",
            "3f524be52e5e5cec05abeb8d3b675a22e8981e69142e84c5dea9d7c4f550ba06e16d21869780c2d52d5ebc39cc5822fb70a84dcc46b0cb438a00a48b147ae9b6",
        ],
    ),
    (
        HashAlgorithm::Sha3_256,
        [
            "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a",
            "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
            "dfc1d369b845a66b6f92924256e16b288d3f0763032ac2ebe2b5e030d656ecad",
        ],
    ),
    (
        HashAlgorithm::Sha3_384,
        [
            "0c63a75b845e4f7d01107d852e4c2485c51a50aaaa94fc61995e71bbee983a2ac3713831264adb47fb6bd1e058d5f004",
            "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b298d88cea927ac7f539f1edf228376d25",
            "9631422f01569d451d84c68e406952cff8faa0d82abbe82d5756ab0e71cf1cd318795ce6eab350742529682df191ee24",
        ],
    ),
    (
        HashAlgorithm::Sha3_512,
        [
            "a69f73cca23a9ac5c8b567dc185a756e97c982164fe25859e0d1dcc1475c80a615b2123af1f5f94c11e3e9402c3ac558f500199d95b6d3e301758586281dcd26",
            "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
            "0707b1a782c2bfb95b70878a4aa2e0acd4b510b3d1e8725269519933cf16b66992f5849076d6100102d27c5fd8b0b2ba123d3c5d0531a3dcc72b091d46601900",
        ],
    ),
];

/// A thousand bytes without a short period: byte `i` is `7 i + i / 256`. Not a multiple of any block length.
fn pattern() -> Vec<u8> {
    (0..1000_u32).map(|i| (7 * i + (i >> 8)).to_le_bytes()[0]).collect()
}

#[test]
fn each_algorithm_gives_its_published_digests() {
    for (algorithm, digests) in VECTORS {
        for (content, digest) in [&b""[..], b"abc", &pattern()].into_iter().zip(digests) {
            assert_eq!(Digest::of(algorithm, content).to_string(), format!("{algorithm}:{digest}"));
        }
    }
}

#[test]
fn the_ripemds_give_their_authors_digests_over_more_than_one_block() {
    let content = b"1234567890".repeat(8);
    for text in [
        "rmd128:3f45ef194732c2dbb2c4a2c769795fa3",
        "rmd160:9b752e45573d4b39f4dbd3323cab82bf63326bfb",
        "rmd256:06fdcc7a409548aaf91368c06a6275b553e3f099bf0ea4edfd6778df89a890dd",
        "rmd320:557888af5f6d8ed62ab66945c6d2a0a47ecd5341e915eb8fea1d0524955f825dc717e4a008ab2d42",
    ] {
        let published: Digest = text.parse().unwrap();
        assert_eq!(Digest::of(published.algorithm(), &content), published);
    }
}

#[test]
fn the_pieces_in_which_content_arrives_do_not_matter() {
    let content = pattern();
    for (algorithm, [.., digest]) in VECTORS {
        for cut in [1, 63, 64, 65, 127, 128, 136, 999] {
            let mut hasher = Hasher::new(algorithm);
            content.chunks(cut).for_each(|piece| hasher.update(piece));
            hasher.update(b"");
            assert_eq!(hasher.finish().to_string(), format!("{algorithm}:{digest}"), "pieces of {cut}");
        }
    }
}

#[test]
fn ids_names_and_lengths_are_the_kernels() {
    // crypto/hash_info.c, in the order of enum hash_algo.
    let kernel = [
        ("md4", 16),
        ("md5", 16),
        ("sha1", 20),
        ("rmd160", 20),
        ("sha256", 32),
        ("sha384", 48),
        ("sha512", 64),
        ("sha224", 28),
        ("rmd128", 16),
        ("rmd256", 32),
        ("rmd320", 40),
        ("wp256", 32),
        ("wp384", 48),
        ("wp512", 64),
        ("tgr128", 16),
        ("tgr160", 20),
        ("tgr192", 24),
        ("sm3", 32),
        ("streebog256", 32),
        ("streebog512", 64),
        ("sha3-256", 32),
        ("sha3-384", 48),
        ("sha3-512", 64),
    ];
    for (id, (name, length)) in (0..).zip(kernel) {
        let algorithm = HashAlgorithm::from_id(id).unwrap();
        assert_eq!((algorithm.id(), algorithm.name(), algorithm.length()), (id, name, length));
        assert_eq!(name.parse(), Ok(algorithm));
        assert_eq!(algorithm.to_string(), name);
    }
    for id in 23..=255 {
        assert_eq!(HashAlgorithm::from_id(id), None, "id {id}");
    }
}

#[test]
fn a_name_that_the_kernel_does_not_have_is_refused_and_the_near_one_is_named() {
    for (name, nearest) in [
        ("SHA256", Some(HashAlgorithm::Sha256)),
        ("sha-256", Some(HashAlgorithm::Sha256)),
        ("sha25", Some(HashAlgorithm::Sha256)),
        ("sha3_512", Some(HashAlgorithm::Sha3_512)),
        ("ripemd160", Some(HashAlgorithm::Rmd160)),
        ("whirlpool", Some(HashAlgorithm::Wp512)),
        ("sm3-256", Some(HashAlgorithm::Sm3)),
        ("streebog-512", Some(HashAlgorithm::Streebog512)),
        // As near to md4 as to md5.
        ("md", None),
        ("", None),
        ("blake3", None),
        ("sha256 ", Some(HashAlgorithm::Sha256)),
    ] {
        assert_eq!(name.parse::<HashAlgorithm>(), Err(UnknownAlgorithm { found: name.into(), nearest }));
    }
    let error = "sha-256".parse::<HashAlgorithm>().unwrap_err();
    assert_eq!(error.to_string(), "unknown hash algorithm \"sha-256\" (did you mean sha256?)");
    let error = "blake3".parse::<HashAlgorithm>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown hash algorithm \"blake3\" (expected one of md4, md5, sha1, rmd160, sha256, sha384, sha512, sha224, rmd128, \
         rmd256, rmd320, wp256, wp384, wp512, tgr128, tgr160, tgr192, sm3, streebog256, streebog512, sha3-256, sha3-384, \
         sha3-512)"
    );
}

#[test]
fn a_digest_has_the_length_of_its_algorithm() {
    for algorithm in HashAlgorithm::ALL {
        for length in 0..=65 {
            let bytes = vec![0xa5; length];
            let expected = algorithm.length();
            match Digest::new(algorithm, &bytes) {
                Ok(digest) => assert_eq!((digest.as_bytes(), length), (&bytes[..], expected)),
                Err(error) => {
                    assert_eq!(error, DigestError::Length { algorithm, found: length, expected });
                    assert_ne!(length, expected);
                }
            }
        }
    }
}

#[test]
fn a_digest_is_parsed_from_what_it_shows() {
    for (algorithm, [_, _, digest]) in VECTORS {
        let computed = Digest::of(algorithm, &pattern());
        assert_eq!(format!("{algorithm}:{digest}").parse(), Ok(computed));
        assert_eq!(format!("{algorithm}:{}", digest.to_uppercase()).parse(), Ok(computed));
    }
    assert_eq!(
        format!("{:?}", Digest::new(HashAlgorithm::Md5, &[7; 16]).unwrap()),
        format!("Digest(md5:{})", "07".repeat(16))
    );
}

#[test]
fn a_text_that_is_no_digest_is_refused_with_its_reason() {
    let algorithm = HashAlgorithm::Md5;
    for (text, expected) in [
        ("d41d8cd98f00b204e9800998ecf8427e".to_owned(), DigestError::NoAlgorithm),
        ("md6:00".to_owned(), DigestError::Algorithm("md6".parse::<HashAlgorithm>().unwrap_err())),
        (format!("md5:{}", "00".repeat(15)), DigestError::Length { algorithm, found: 15, expected: 16 }),
        (format!("md5:{}", "00".repeat(17)), DigestError::Length { algorithm, found: 17, expected: 16 }),
        (format!("md5:{}", "00".repeat(65)), DigestError::Length { algorithm, found: 65, expected: 16 }),
        (format!("md5:{}", "0".repeat(31)), DigestError::OddDigits { found: 31, expected: 32 }),
        (format!("md5:0g{}", "00".repeat(15)), DigestError::NotHex { offset: 5, found: 'g' }),
        (format!("md5:é{}", "00".repeat(15)), DigestError::NotHex { offset: 4, found: 'é' }),
        ("md5:".to_owned(), DigestError::Length { algorithm, found: 0, expected: 16 }),
    ] {
        assert_eq!(text.parse::<Digest>(), Err(expected), "{text}");
    }
}
