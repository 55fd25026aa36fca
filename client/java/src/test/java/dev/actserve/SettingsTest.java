package dev.actserve;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.time.Duration;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Settings that a client takes, and what it refuses. */
final class SettingsTest {
  @ParameterizedTest
  @CsvSource({
    "localhost, true",
    "localhost:1, true",
    "127.0.0.1:1, true",
    "127.9.9.9:1, true",
    "[::1]:1, true",
    "unix:/run/actserve.sock, true",
    "dns:localhost:1, true",
    "dns:///localhost:1, true",
    "dns://elsewhere/localhost:1, false",
    "127.0.0.1.example.com:1, false",
    "0.0.0.0:1, false",
    "[::]:1, false",
    "xds:///localhost, false",
  })
  void aTokenGoesInPlaintextToThisMachineAlone(String target, boolean local) {
    assertEquals(local, Targets.isLocal(target));
  }

  @Test
  void settingsThatCannotBeAreRefused(@TempDir Path folder) throws Exception {
    Path junk = Files.writeString(folder.resolve("junk.pem"), "junk");
    Path begun = folder.resolve("begun.pem");
    Files.writeString(begun, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    for (Path file : List.of(junk, begun)) {
      assertEquals("tls", field(ActserveClient.builder("a").tls(file)));
      assertEquals("tls", field(ActserveClient.builder("a").clientCertificate(file, file)));
    }
    assertEquals("target", field(ActserveClient.builder("user:pw@127.0.0.1:1")));
    assertEquals("target", field(ActserveClient.builder("http://localhost")));
    assertEquals("timeout", field(ActserveClient.builder("a").timeout(Duration.ZERO)));
    assertEquals("header", field(ActserveClient.builder("a").header("two words", "b")));
    assertEquals("tls", field(ActserveClient.builder("a").tls(Path.of("/nowhere.pem"))));
    assertEquals(
        "token", field(ActserveClient.builder("a").header("Authorization", "Bearer secret")));
  }

  private static String field(ActserveClientBuilder builder) {
    return assertThrows(ActserveException.class, builder::build).field();
  }

  @Test
  void rsaKeysOfTheOlderFormBecomePkcs8(@TempDir Path folder) throws Exception {
    KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
    generator.initialize(2048);
    byte[] pkcs8 = generator.generateKeyPair().getPrivate().getEncoded();
    // The older form is the key without what comes before it.
    byte[] pkcs1 = Arrays.copyOfRange(pkcs8, 26, pkcs8.length);
    Path file = folder.resolve("key.pem");
    Files.writeString(file, pem("RSA PRIVATE KEY", pkcs1));
    assertArrayEquals(pem("PRIVATE KEY", pkcs8).getBytes(), PrivateKeys.read(file));
  }

  @ParameterizedTest
  @CsvSource({"RSA", "EC"})
  void aKeyThatIsNotThatOfItsCertificateIsRefused(String algorithm, @TempDir Path folder)
      throws Exception {
    KeyStore.PrivateKeyEntry own = issued(algorithm, folder.resolve("own.p12"));
    Path certificate = folder.resolve("certificate.pem");
    Files.writeString(certificate, pem("CERTIFICATE", own.getCertificate().getEncoded()));
    Path key = folder.resolve("key.pem");

    Files.writeString(key, pem("PRIVATE KEY", own.getPrivateKey().getEncoded()));
    ActserveClient.builder("a").clientCertificate(certificate, key).build().close();

    for (String other : List.of("RSA", "EC")) {
      KeyStore.PrivateKeyEntry another = issued(other, folder.resolve(other + ".p12"));
      Files.writeString(key, pem("PRIVATE KEY", another.getPrivateKey().getEncoded()));
      assertEquals("tls", field(ActserveClient.builder("a").clientCertificate(certificate, key)));
    }
  }

  /** A new key and its certificate, which only the tool of the JDK can issue. */
  private static KeyStore.PrivateKeyEntry issued(String algorithm, Path store) throws Exception {
    List<String> command =
        List.of(
            Path.of(System.getProperty("java.home"), "bin", "keytool").toString(),
            "-genkeypair",
            "-keyalg",
            algorithm,
            "-alias",
            "a",
            "-dname",
            "CN=a",
            "-storetype",
            "PKCS12",
            "-storepass",
            "secret",
            "-keystore",
            store.toString());
    assertEquals(0, new ProcessBuilder(command).inheritIO().start().waitFor());
    KeyStore entries = KeyStore.getInstance(store.toFile(), "secret".toCharArray());
    return (KeyStore.PrivateKeyEntry)
        entries.getEntry("a", new KeyStore.PasswordProtection("secret".toCharArray()));
  }

  private static String pem(String kind, byte[] key) {
    String body = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(key);
    return "-----BEGIN " + kind + "-----\n" + body + "\n-----END " + kind + "-----\n";
  }
}
