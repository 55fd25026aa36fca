package dev.actserve;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.InvalidKeyException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.Signature;
import java.security.SignatureException;
import java.security.cert.CertificateFactory;
import java.security.spec.InvalidKeySpecException;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Arrays;
import java.util.Base64;
import java.util.HexFormat;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Private keys of PEM files. Java reads PKCS #8 alone; the older forms of RSA (PKCS #1) and of
 * elliptic curves (SEC 1), which most tools write, become that here.
 */
final class PrivateKeys {
  private static final Pattern OLDER =
      Pattern.compile(
          "-----BEGIN (RSA|EC) PRIVATE KEY-----([A-Za-z0-9+/=\\s]+)-----END \\1 PRIVATE KEY-----");

  private static final Pattern PKCS8 =
      Pattern.compile("-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\\s]+)-----END PRIVATE KEY-----");

  /** What signs with a key of a kind; gRPC takes no others. */
  private static final Map<String, String> SIGNATURES =
      Map.of("RSA", "SHA256withRSA", "EC", "SHA256withECDSA");

  private static final byte SEQUENCE = 0x30;
  private static final byte OCTET_STRING = 0x04;
  private static final byte CURVE = (byte) 0xa0;

  private static final byte[] VERSION = HexFormat.of().parseHex("020100");

  /** The object identifier of RSA, and no parameters. */
  private static final byte[] RSA = HexFormat.of().parseHex("06092a864886f70d0101010500");

  /** The object identifier of elliptic curves; the one of the curve comes after it. */
  private static final byte[] EC = HexFormat.of().parseHex("06072a8648ce3d0201");

  private PrivateKeys() {}

  /** The key of a PEM file, as PEM in PKCS #8. */
  static byte[] read(Path file) throws IOException {
    String pem = Files.readString(file, StandardCharsets.US_ASCII);
    Matcher older = OLDER.matcher(pem);
    if (older.find()) {
      byte[] key = Base64.getMimeDecoder().decode(older.group(2));
      byte[] algorithm = older.group(1).equals("RSA") ? RSA : concatenated(EC, curve(key));
      byte[] whole =
          der(SEQUENCE, concatenated(VERSION, der(SEQUENCE, algorithm), der(OCTET_STRING, key)));
      String text = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(whole);
      pem = "-----BEGIN PRIVATE KEY-----\n" + text + "\n-----END PRIVATE KEY-----\n";
    }
    return pem.getBytes(StandardCharsets.US_ASCII);
  }

  /**
   * Whether a key is that of a certificate: what the one signs, the other verifies. What gRPC
   * itself refuses is left to it.
   *
   * @param key PEM, in PKCS #8
   * @param chain PEM; its first certificate is the key's
   * @throws GeneralSecurityException if the chain begins with no certificate
   */
  static boolean belongs(byte[] key, byte[] chain) throws GeneralSecurityException {
    PublicKey open =
        CertificateFactory.getInstance("X.509")
            .generateCertificate(new ByteArrayInputStream(chain))
            .getPublicKey();
    String algorithm = SIGNATURES.get(open.getAlgorithm());
    if (algorithm == null) {
      return true;
    }
    Matcher pem = PKCS8.matcher(new String(key, StandardCharsets.US_ASCII));
    if (!pem.find()) {
      return true;
    }
    Signature signature = Signature.getInstance(algorithm);
    try {
      byte[] der = Base64.getMimeDecoder().decode(pem.group(1));
      signature.initSign(
          KeyFactory.getInstance(open.getAlgorithm())
              .generatePrivate(new PKCS8EncodedKeySpec(der)));
      signature.update(chain);
      byte[] signed = signature.sign();
      signature.initVerify(open);
      signature.update(chain);
      return signature.verify(signed);
    } catch (InvalidKeySpecException | InvalidKeyException | SignatureException otherKind) {
      return false;
    }
  }

  /**
   * The curve that a key names: SEQUENCE { version INTEGER, key OCTET STRING, [0] curve, [1] public
   * key }.
   */
  private static byte[] curve(byte[] key) throws IOException {
    int at = content(key, 0);
    while (at < key.length) {
      int content = content(key, at);
      int end = content + length(key, at);
      if (end > key.length) {
        break;
      }
      if (key[at] == CURVE) {
        return Arrays.copyOfRange(key, content, end);
      }
      at = end;
    }
    throw new IOException("the private key does not name its curve; write it in PKCS #8");
  }

  /** How many bytes the content of a DER value has; they are at most two to count. */
  private static int length(byte[] der, int at) throws IOException {
    int first = byteAt(der, at + 1);
    return switch (first) {
      case 0x81 -> byteAt(der, at + 2);
      case 0x82 -> byteAt(der, at + 2) << 8 | byteAt(der, at + 3);
      default -> first;
    };
  }

  private static int content(byte[] der, int at) throws IOException {
    int first = byteAt(der, at + 1);
    return at + 2 + (first < 0x80 ? 0 : first - 0x80);
  }

  private static int byteAt(byte[] der, int at) throws IOException {
    if (at >= der.length) {
      throw new IOException("the private key ends too early");
    }
    return Byte.toUnsignedInt(der[at]);
  }

  private static byte[] der(byte tag, byte[] content) {
    ByteArrayOutputStream value = new ByteArrayOutputStream();
    value.write(tag);
    if (content.length >= 0x100) {
      value.write(0x82);
      value.write(content.length >> 8);
    } else if (content.length >= 0x80) {
      value.write(0x81);
    }
    value.write(content.length);
    value.writeBytes(content);
    return value.toByteArray();
  }

  private static byte[] concatenated(byte[]... parts) {
    ByteArrayOutputStream all = new ByteArrayOutputStream();
    for (byte[] part : parts) {
      all.writeBytes(part);
    }
    return all.toByteArray();
  }
}
