package catalog

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/kamivm/kami/pkg/ami"
)

// oldRows are a row of each table, as the kami wrote it that brought the table.
var oldRows = [len(migrations)]string{
	0: `
	INSERT INTO images (id, owner, name, state, created, doc) VALUES ('ami-1', '000000000000', 'old', 'available', '2026-03-04T05:06:07.000000000Z',
		'{"ImageId":"ami-1","OwnerId":"000000000000","Name":"old","State":"available","CreationDate":"2026-03-04T05:06:07Z","DeprecationTime":"2027-03-04T05:06:07Z",
		"BlockDeviceMappings":[{"DeviceName":"/dev/sda1","Ebs":{"SnapshotId":"snap-1"}}]}');
	INSERT INTO snapshots VALUES ('snap-1', '000000000000', 'completed', 'aa', '2026-03-04T05:06:07.000000000Z',
		'{"SnapshotId":"snap-1","OwnerId":"000000000000","State":"completed","StartTime":"2026-03-04T05:06:07Z","LayerDigest":"aa","LayerSizeInBytes":7}');
	INSERT INTO image_snapshots VALUES ('ami-1', 'snap-1');
	INSERT INTO volumes VALUES ('vol-1', '000000000000', 'i-1', 'aa', '2026-03-04T05:06:07.000000000Z',
		'{"VolumeId":"vol-1","OwnerId":"000000000000","Size":2,"VolumeType":"gp3","State":"in-use","CreateTime":"2026-03-04T05:06:07Z","Attachments":[{"InstanceId":"i-1"}],"LayerDigest":"aa"}');
	INSERT INTO instances VALUES ('i-1', '000000000000', 'ami-1', 'running', '2026-03-04T05:06:07.000000000Z',
		'{"InstanceId":"i-1","OwnerId":"000000000000","ImageId":"ami-1","InstanceType":"t3.micro","State":{"Code":16,"Name":"running"},"LaunchTime":"2026-03-04T05:06:07Z"}');
	INSERT INTO key_pairs VALUES ('key-1', '000000000000', 'me', '2026-03-04T05:06:07.000000000Z',
		'{"KeyPairId":"key-1","OwnerId":"000000000000","KeyName":"me","CreateTime":"2026-03-04T05:06:07Z"}');
	INSERT INTO leases VALUES ('gone-vol-2', '', 'bb', '2026-03-04T05:06:07.000000000Z');`,
	1: `INSERT INTO cached_layers VALUES ('key', 'cc', '2026-03-04T05:06:07.000000000Z',
		'{"Key":"key","LayerDigest":"cc","Of":"a bundle","CreateTime":"2026-03-04T05:06:07Z","LastUseTime":"2026-03-04T05:00:00Z"}');`,
	2: `INSERT INTO settings VALUES ('000000000000/word', '2026-03-04T05:06:07.000000000Z', '"said"');`,
	3: `
	INSERT INTO image_terms (id, name, value, n) VALUES (5, '(audience)', '000000000000', 1), (6, 'name', 'old', 1);
	INSERT INTO image_postings VALUES (5, 1772600767000000, 'ami-1'), (6, 1772600767000000, 'ami-1');
	INSERT INTO image_deprecations VALUES ('ami-1', '000000000000', 1804136767000000);
	UPDATE images SET terms = '[5,6]', at = 1772600767000000;`,
	4: `
	INSERT INTO settings VALUES ('/metered-since', '2026-03-04T05:06:07.000000000Z', '"2026-03-04T05:06:07Z"');
	INSERT INTO usages VALUES ('i-1/X', 'i-1', '000000000000', '2026-03-05T05:06:07.000000000Z', '2026-03-04T05:06:07.000000000Z',
		'{"Id":"i-1/X","Kind":"instance","ResourceId":"i-1","OwnerId":"000000000000","Type":"t3.micro","From":"2026-03-04T05:06:07Z","To":"2026-03-05T05:06:07Z"}'),
		('i-1/Y', 'i-1', '000000000000', '', '2026-03-06T05:06:07.000000000Z',
		'{"Id":"i-1/Y","Kind":"instance","ResourceId":"i-1","OwnerId":"000000000000","Type":"t3.micro","From":"2026-03-06T05:06:07Z"}');`,
	5: `
	INSERT INTO offers VALUES ('web', '000000000000', '2026-03-04T05:06:07.000000000Z',
		'{"ProductCode":"web","OwnerId":"000000000000","Title":"Web","HourlyPrice":"0.02","MonthlyPrice":"0","Currency":"EUR","CreationTime":"2026-03-04T05:06:07Z"}');
	INSERT INTO subscriptions VALUES ('web/111111111111/2026-03-04T05:06:07Z', 'web', '111111111111', '2026-03-04T05:06:07.000000000Z',
		'{"ProductCode":"web","AccountId":"111111111111","SubscribedAt":"2026-03-04T05:06:07Z"}');`,
	6: `
	INSERT INTO launch_templates VALUES ('lt-1', '000000000000', 'web', '2026-03-04T05:06:07.000000000Z',
		'{"LaunchTemplateId":"lt-1","LaunchTemplateName":"web","OwnerId":"000000000000","CreateTime":"2026-03-04T05:06:07Z","DefaultVersionNumber":1,"LatestVersionNumber":1,"LaunchTemplateVersions":[{"VersionNumber":1}]}');
	INSERT INTO instance_groups VALUES ('000000000000/web', '000000000000', '2026-03-04T05:06:07.000000000Z',
		'{"AutoScalingGroupName":"web","OwnerId":"000000000000","DesiredCapacity":1}');`,
}

// oldCatalog makes a catalog as the kami of a version left it, with a row in each table.
func oldCatalog(t *testing.T, path string, version int) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for n := range version {
		if _, err := db.ExecContext(t.Context(), migrations[n]+oldRows[n]); err != nil {
			t.Fatalf("version %d: %v", n+1, err)
		}
	}
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		t.Fatal(err)
	}
	for _, table := range texts(t, db, "SELECT name FROM sqlite_master WHERE type = 'table'") {
		if len(texts(t, db, "SELECT count(*) FROM "+table+" HAVING count(*) > 0")) == 0 {
			t.Fatalf("the old catalog of version %d has no row in %s", version, table)
		}
	}
}

// texts reads a query's rows, each as one text.
func texts(t *testing.T, db *sql.DB, query string) (out []string) {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	cols, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		vals, to := make([]string, len(cols)), make([]any, len(cols))
		for i := range vals {
			to[i] = &vals[i]
		}
		if err := rows.Scan(to...); err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.Join(vals, " | "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// recordTables are those of the records, whose rows nothing but their own writing changes.
var recordTables = []string{
	"snapshots", "image_snapshots", "volumes", "instances", "key_pairs", "leases", "cached_layers",
	"usages", "offers", "subscriptions", "launch_templates", "instance_groups",
}

// TestUpgrade holds that the catalog of each older kami becomes one as it is made today,
// that what is in it stays and can be found, and that use goes on or begins to be metered.
func TestUpgrade(t *testing.T) {
	fresh := open(t, filepath.Join(t.TempDir(), "catalog.db"))
	const schema = "SELECT type, name, coalesce(sql, '') FROM sqlite_master ORDER BY type, name"
	for version := 1; version <= len(migrations); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "catalog.db")
			oldCatalog(t, path, version)
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			before := map[string][]string{}
			for _, table := range texts(t, db, "SELECT name FROM sqlite_master WHERE type = 'table'") {
				before[table] = texts(t, db, "SELECT * FROM "+table)
			}
			s := open(t, path)
			if d := gocmp.Diff(texts(t, fresh.db, schema), texts(t, db, schema)); d != "" {
				t.Errorf("the schema is not that of a new catalog (-new +got):\n%s", d)
			}
			if got := texts(t, db, "PRAGMA integrity_check"); !slices.Equal(got, []string{"ok"}) {
				t.Errorf("the integrity check says %q", got)
			}
			for _, table := range recordTables {
				if d := gocmp.Diff(before[table], texts(t, db, "SELECT * FROM "+table)); d != "" {
					t.Errorf("%s (-before +after):\n%s", table, d)
				}
			}
			checkOldRecords(t, s)

			// Metering begins once, with what there is; one that had begun goes on.
			h := newHost()
			for range 2 {
				if err := s.StartMetering(t.Context(), Meter{Now: h.now}); err != nil {
					t.Fatal(err)
				}
				h.pass(time.Hour, 0)
			}
			var metered []string
			for _, u := range usages(t, s) {
				metered = append(metered, u.ResourceID+" "+u.From.Format(time.RFC3339))
			}
			want := []string{"i-1 2026-03-04T05:06:07Z", "i-1 2026-03-06T05:06:07Z"}
			if version < 5 {
				want = []string{"i-1 2026-11-20T12:00:00Z", "snap-1 2026-11-20T12:00:00Z", "vol-1 2026-11-20T12:00:00Z"}
			}
			if slices.Sort(metered); !slices.Equal(metered, want) {
				t.Errorf("metered are %q, want %q", metered, want)
			}

			// The index is whole: nothing of the image stays when it goes.
			update(t, s, func(tx *Tx) error {
				err := tx.DeleteImage("ami-1")
				if left := indexOf(t, tx); len(left) > 0 {
					t.Errorf("got %q of no image, want nothing", left)
				}
				return err
			})
		})
	}
}

// TestVerifyReadsAll holds that there is no table whose damage Verify does not see.
func TestVerifyReadsAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	oldCatalog(t, path, len(migrations))
	s := open(t, path)
	update(t, s, func(tx *Tx) error {
		for _, table := range texts(t, s.db, "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c ON c.name = 'doc' WHERE m.type = 'table'") {
			if _, err := tx.conn.ExecContext(t.Context(), "UPDATE "+table+" SET doc = '{'"); err != nil {
				return err
			}
			damage, err := tx.Verify()
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(damage, func(err error) bool { return strings.Contains(err.Error(), " in "+table) }) {
				t.Errorf("got %v, want the damage of %s", damage, table)
			}
		}
		return nil
	})
}

// checkOldRecords reads what oldRows wrote, in the words of today.
func checkOldRecords(t *testing.T, s *Store) {
	t.Helper()
	err := s.View(t.Context(), func(tx *Tx) error {
		if damage, err := tx.Verify(); len(damage) > 0 || err != nil {
			t.Errorf("got the damage %v (%v)", damage, err)
		}
		image := ami.Image{
			ImageID: "ami-1", OwnerID: "000000000000", Name: "old", State: ami.ImageAvailable, CreationDate: start, DeprecationTime: start.AddDate(1, 0, 0),
			BlockDeviceMappings: []ami.BlockDeviceMapping{{DeviceName: "/dev/sda1", Ebs: &ami.EBSBlockDevice{SnapshotID: "snap-1"}}},
		}
		found, _, err := tx.FindImages(ImageQuery{
			Viewers: []string{image.OwnerID}, Account: "111111111111", Now: start, Where: []AnyOf{Filter("name", "o*")},
		})
		if d := gocmp.Diff([]ami.Image{image}, found); d != "" || err != nil {
			t.Errorf("images (-want +got):\n%s%v", d, err)
		}
		late, _, err := tx.FindImages(ImageQuery{Viewers: []string{image.OwnerID}, Account: "111111111111", Now: start.AddDate(2, 0, 0)})
		if len(late) > 0 || err != nil {
			t.Errorf("got %v (%v), want that it is deprecated by then", late, err)
		}
		if inst, err := tx.Instance("i-1"); inst.State.Name != ami.InstanceRunning || inst.InstanceType != "t3.micro" || err != nil {
			t.Errorf("got the instance %+v (%v)", inst, err)
		}
		if vols, err := tx.VolumesOf("i-1"); len(vols) != 1 || vols[0].Size != 2 || err != nil {
			t.Errorf("got the volumes %+v (%v)", vols, err)
		}
		users, err := tx.ImagesUsingSnapshot("snap-1")
		if !slices.Equal(users, []ami.ImageID{"ami-1"}) || err != nil {
			t.Errorf("got the users %v (%v)", users, err)
		}
		if key, err := tx.KeyPair("000000000000", "me"); key.KeyPairID != "key-1" || err != nil {
			t.Errorf("got the key %+v (%v)", key, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
